"""A rank that counts what DeepSpeed holds: `states_worker.py NAME FOLDER`; rank 0 writes FOLDER/NAME.json."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dsvlp import dist, recipe, system
from dsvlp.engine import dsconfig
from dsvlp.engine.zero import Engine, join
from dsvlp.launch.local import leave
from dsvlp.system import TrainRequest
from tests.batches import make_batch, make_facts

LAYOUTS = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
BUCKET = 400_000  # numbers; above the largest parameter, and so small that states are seen beside it
SMALL = 1000  # numbers; what is reduced in fewer is no gradient
PAIRS = 2


def held() -> int:
    """Returns the bytes of all tensors that live, each storage once."""
    storages: dict[int, int] = {}
    for one in gc.get_objects():
        if issubclass(type(one), torch.Tensor) and one.device.type == "cpu":
            for tensor in (one, one.grad if one.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def small(load: Callable[[str], dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    """Returns a reader of layouts with small buckets, that partitions even the smallest parameter."""

    def read(name: str) -> dict[str, Any]:
        layout = load(name)
        zero = layout["zero_optimization"]
        if zero["stage"]:
            zero["reduce_bucket_size"] = BUCKET
        if zero["stage"] == 3:
            zero["stage3_param_persistence_threshold"] = 0
        return layout

    return read


class Sampler:
    """Notes the most that is held while gradients are reduced."""

    def __init__(self) -> None:
        self.most = 0
        for name in ("all_reduce", "reduce_scatter_tensor"):
            setattr(torch.distributed, name, self._noted(getattr(torch.distributed, name)))

    def _noted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*tensors: Any, **options: Any) -> Any:
            given = [value for value in (*tensors, *options.values()) if isinstance(value, torch.Tensor)]
            if max(tensor.numel() for tensor in given) > SMALL:
                self.most = max(self.most, held())
            return call(*tensors, **options)

        return noted


def measure(name: str, times: int, sampler: Sampler) -> dict[str, int]:
    """Returns the bytes of a model's states: after a step, and at the most while reducing."""
    overrides = [f"engine.zero={name}", f"batch.micro_pairs={PAIRS}"]
    shown = recipe.load("tiny_svl", [*overrides, f"batch.global_pairs={PAIRS * times * dist.world_size()}"])
    gc.collect()
    before = held()
    built = system.build(shown, make_facts())
    engine = Engine(built, shown, accumulation=times)
    engine.train()
    batch = make_batch(PAIRS, image_size=shown.model.image_size, length=shown.model.text.max_length)
    after = held() - before
    sampler.most = 0
    for _ in range(times):
        losses = engine(TrainRequest(built.prepare(batch)))
        loss = sum(loss.sum for loss in losses.values())
        del losses
        engine.backward(loss)
        del loss
    engine.step(1.0)
    gc.collect()
    out = {"built": after, "between": held() - before, "reducing": sampler.most - before}
    engine.close()
    return out


if __name__ == "__main__":
    counter = Sampler()  # before DeepSpeed takes the functions over
    join(120)
    dsconfig.load_layout = small(dsconfig.load_layout)
    cases = [*((name, 2) for name in LAYOUTS), ("zero2", 1)]
    results = {f"{name}, {times}": measure(name, times, counter) for name, times in cases}
    if dist.rank() == 0:
        (Path(sys.argv[2]) / f"{sys.argv[1]}.json").write_text(json.dumps(results))
    dist.barrier(60)
    leave(0)  # libraries have been seen to abort in their exit handlers
