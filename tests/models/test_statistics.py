"""BatchNorm's running statistics on two processes: each batch counts once, a save has one truth."""

import json
from typing import Any

import pytest
import torch

from tests.engine.processes import run


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("statistics")
    run("../models/statistics_worker.py", "two", str(folder / "found.json"), world=2, scratch=folder)
    out: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return out


def tensors(values: dict[str, list[float]], end: str = "running_var") -> torch.Tensor:
    return torch.tensor([x for name, value in values.items() if name.endswith(end) for x in value])


def test_frozen_statistics_move_on_no_rank(found: dict[str, Any]) -> None:
    assert all(set(tensors(rank).tolist()) == {1.0} for rank in found["frozen"]["after"])


def test_each_rank_has_its_own_statistics_until_a_save_averages_them(found: dict[str, Any]) -> None:
    one, two = found["train"]["before"]
    assert not torch.allclose(tensors(one), tensors(two), rtol=1e-3)
    for end in ("running_mean", "running_var"):
        mean = (tensors(one, end) + tensors(two, end)) / 2
        for rank in found["train"]["after"]:
            torch.testing.assert_close(tensors(rank, end), mean, rtol=1e-6, atol=1e-7)


def test_synchronised_statistics_are_those_of_one_process_and_a_save_changes_no_bit(
    found: dict[str, Any],
) -> None:
    (one, two), after = found["sync"]["before"], found["sync"]["after"]
    assert one == two == after[0] == after[1]
    for end in ("running_mean", "running_var"):
        torch.testing.assert_close(
            tensors(one, end), tensors(found["sync"]["whole"], end), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("kind", ["train", "sync"])
def test_a_recomputed_batch_counts_once(found: dict[str, Any], kind: str) -> None:
    counted = tensors(found[kind]["before"][0], "num_batches_tracked")
    assert set(counted.tolist()) == {1.0}


@pytest.mark.parametrize("kind", ["frozen", "train", "sync"])
def test_an_infinite_pixel_on_one_rank_leaves_all_state_as_it_was_and_the_next_step_trains(
    found: dict[str, Any], kind: str
) -> None:
    for rank in found[kind]["skipped"]:
        assert (rank["finite"], rank["untouched"]) == (False, True)
        assert rank["next_finite"] and rank["weights_move"]
    moved = [rank["statistics_move"] for rank in found[kind]["skipped"]]
    assert any(moved) == (kind != "frozen")  # each rank writes a share
