"""Collectives beside what one process computes of all ranks' tensors."""

from pathlib import Path

import pytest
import torch

from dsvlp import dist
from tests.engine.dist_worker import own_rows, weights
from tests.engine.processes import run

WORLD = 3


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list:
    folder: Path = tmp_path_factory.mktemp("dist")
    run("dist_worker.py", "gather", str(folder), world=WORLD, scratch=folder, seconds=120)
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize("sent_as", [None, torch.bfloat16])
def test_all_ranks_have_all_rows_rounded_alike_in_their_own_dtype(found: list, sent_as):
    every = torch.cat([own_rows(rank) for rank in range(WORLD)])
    expected = every if sent_as is None else every.to(sent_as).float()
    assert sent_as is None or not torch.equal(every, expected), "the rounding must show"
    for per_rank, _ in found:
        assert per_rank[str(sent_as)][0].dtype == torch.float32
        assert torch.equal(per_rank[str(sent_as)][0], expected)


@pytest.mark.parametrize("sent_as", [None, torch.bfloat16])
def test_a_ranks_gradient_is_the_fp32_sum_of_all_ranks_for_its_rows(found: list, sent_as):
    summed = sum(weights(rank, WORLD) for rank in range(WORLD))
    for rank, (per_rank, _) in enumerate(found):
        gradient = per_rank[str(sent_as)][1]
        assert torch.allclose(gradient, summed[2 * rank : 2 * rank + 2], rtol=1e-6, atol=1e-6)


def test_hosts_agree_on_the_most_of_each_value(found: list):
    assert [most for _, most in found] == [[WORLD - 1, 0, 7]] * WORLD


def test_one_process_is_left_alone():
    rows = torch.randn(4, 2)
    assert dist.gather_with_gradient(rows, torch.bfloat16) is rows
    assert dist.reduce_scatter_sum(rows) is rows
    assert dist.agreed_most([3, 1], dist.side_group(1)) == [3, 1]
