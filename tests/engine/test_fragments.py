from __future__ import annotations

import random

from dsvlp.engine.fragments import owners


def test_every_replicated_tensor_has_one_owner_and_the_load_is_even() -> None:
    draw = random.Random(0)
    sizes = [draw.randint(0, 1000) for _ in range(300)]
    for world in (1, 2, 3, 8):
        ranks = owners(sizes, world)
        load = [sum(s for s, r in zip(sizes, ranks, strict=True) if r == rank) for rank in range(world)]
        assert set(ranks) == set(range(world)) and sum(load) == sum(sizes)
        assert max(load) - min(load) <= max(sizes)
