"""Contrast, hard negatives and the queue over several processes: three launches, many claims.

The worker is `contrast_worker.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.processes import run

pytestmark = pytest.mark.slow

CASES = ("zero1-step", "zero3-step", "zero1-micro_step")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all launches: one process, two, and one again."""
    path = tmp_path_factory.mktemp("contrast")
    run("contrast_worker.py", "gradients,queues", str(path), world=1, scratch=path, seconds=900)
    run(
        "contrast_worker.py",
        "gradients,lengths,queues,resume,bounds",
        str(path),
        world=2,
        scratch=path,
        seconds=900,
    )
    run("contrast_worker.py", "back", str(path), world=1, scratch=path, seconds=900)
    return path


def results(folder: Path, theme: str, world: int) -> dict[str, Any]:
    out: dict[str, Any] = json.loads((folder / f"{theme}-{world}.json").read_text())
    return out


def assert_queues_agree(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    for name in ("rows", "samples", "place"):
        assert one[name] == other[name], name
    for name in ("image", "text"):
        assert (torch.tensor(one[name]) - torch.tensor(other[name])).abs().max() < tolerance


def test_two_ranks_give_the_gradients_of_one_at_equal_contrastive_batch(folder: Path) -> None:
    one, two = (results(folder, "gradients", world) for world in (1, 2))
    for losses, others in zip(one["losses"], two["losses"], strict=True):
        assert losses == pytest.approx(others, rel=1e-5)
    assert one["gradients"].keys() == two["gradients"].keys()
    top = max(abs(value) for values in one["gradients"].values() for value in values)
    for name, values in one["gradients"].items():
        expected, found = torch.tensor(values), torch.tensor(two["gradients"][name])
        # Below a thousandth of the largest gradient stand sums of terms that cancel.
        largest = expected.abs().max().clamp(min=1e-3 * top)
        difference = (found - expected).abs().max() / largest
        assert difference < 1e-5, f"{name}: {difference:.2e}"


def test_held_out_losses_and_constants_do_not_depend_on_the_number_of_processes(folder: Path) -> None:
    one, two = (results(folder, "gradients", world)["held out"] for world in (1, 2))
    assert one == pytest.approx(two, rel=1e-5)
    assert {"loss/itc", "constant/itc", "constant/itc/accuracy", "metrics/itm/hardness"} <= one.keys()
    assert one["count/itm"] == 3 * one["count/itc"] == 3 * 15


def test_gathered_texts_are_cut_to_the_longest_of_all_ranks_and_sent_in_bf16(folder: Path) -> None:
    found = results(folder, "lengths", 2)
    long, short = found["longest"]
    assert short == [8, 8] and max(long) > 8, "nothing to agree on"
    full, cut, rounded = (found[name] for name in ("full", "cut", "bf16"))
    assert cut["losses"] == pytest.approx(full["losses"], rel=1e-5)
    assert cut["norm"] == pytest.approx(full["norm"], rel=1e-5)
    assert rounded["losses"] == pytest.approx(full["losses"], rel=0.02, abs=0.02)
    assert rounded["losses"]["loss/itm"] != full["losses"]["loss/itm"]


def test_the_second_step_has_the_firsts_pairs_as_negatives(folder: Path) -> None:
    first, second = results(folder, "gradients", 1)["losses"]
    assert second["loss/itc"] > first["loss/itc"] + 0.5  # log(8 + 15 keys) after log(8)


def test_the_queue_does_not_depend_on_the_cut(folder: Path) -> None:
    one, two = (results(folder, "queues", world) for world in (1, 2))
    expected = one["local 8"]
    samples = torch.cat((torch.arange(12, 28), torch.arange(24, 40)))[-24:]
    order = [(expected["place"] + k) % 24 for k in range(24)]
    assert torch.tensor(expected["samples"])[order].tolist() == samples.tolist()
    for every in (one, two):
        for queue in every.values():
            assert queue["same on all ranks"]
            assert_queues_agree(queue, expected, 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_bit_for_bit_the_same_with_its_queue_and_temperature(
    folder: Path, case: str
) -> None:
    result = results(folder, "resume", 2)[case]
    for key in ("losses", "queue", "digest"):
        assert result["parts"][key] == result["whole"][key], key


@pytest.mark.parametrize("case", CASES)
def test_a_step_that_is_not_finite_leaves_the_queue_as_it_was(folder: Path, case: str) -> None:
    assert results(folder, "resume", 2)[case]["whole"]["skipped"]


def test_one_process_goes_on_from_two(folder: Path) -> None:
    two, one = results(folder, "resume", 2)["zero3-step"]["whole"], results(folder, "back", 1)
    assert_queues_agree(two["queue"], one["queue"], 1e-5)
    for losses, others in zip(two["losses"], one["losses"], strict=True):
        assert losses == pytest.approx(others, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("layout", ["zero1", "zero3"])
def test_the_temperatures_master_stays_in_its_bounds(folder: Path, layout: str) -> None:
    values = results(folder, "bounds", 2)[layout]
    assert len(values) == 2
    assert all(value in (pytest.approx(0.001), pytest.approx(1.0)) for value in values)
