"""The engine over ZeRO 0 to 3: three launches, many claims. The worker is `zero_worker.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dsvlp.engine.checkpoint import CheckpointStore
from tests.engine.processes import run

LAYOUTS = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
CASES = [*(f"{z}-fp32" for z in LAYOUTS), "zero0-bf16", "zero1-bf16", "zero3-bf16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all launches: one process, two, and one again."""
    path = tmp_path_factory.mktemp("engine")
    run("zero_worker.py", "one", str(path), world=1, scratch=path)
    run("zero_worker.py", "resume,convert,skip,two", str(path), world=2, scratch=path)
    run("zero_worker.py", "back", str(path), world=1, scratch=path)
    return path


def results(folder: Path, theme: str) -> dict[str, Any]:
    out: dict[str, Any] = json.loads((folder / f"{theme}.json").read_text())
    return out


def largest_difference(a: dict[str, list[float]], b: dict[str, list[float]]) -> float:
    assert a.keys() == b.keys()
    return max(float((torch.tensor(a[n]) - torch.tensor(b[n])).abs().max()) for n in a)


def stored(folder: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Returns the oldest checkpoint's tensors, whole."""
    store = CheckpointStore(folder)
    checkpoint = store.load()
    assert checkpoint is not None
    out = {key: checkpoint.reader.whole(*key) for key in checkpoint.reader.table()}
    store.close()
    return out


@pytest.mark.parametrize("case", CASES)
def test_six_steps_are_three_and_two_and_one_bit_for_bit(folder: Path, case: str) -> None:
    result = results(folder, "resume")[case]
    for key in ("at_3", "at_6", "losses"):
        assert result["parts"][key] == result["whole"][key], key


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_every_stage_trains_the_same_weights(folder: Path, layout: str) -> None:
    result = results(folder, "resume")
    reference, other = result["zero0-fp32"]["whole"], result[f"{layout}-fp32"]["whole"]
    assert largest_difference(reference["weights"], other["weights"]) < 2e-6
    assert reference["losses"] == pytest.approx(other["losses"], rel=1e-5)


def test_bf16_trains_like_fp32_and_not_the_same(folder: Path) -> None:
    result = results(folder, "resume")
    difference = largest_difference(
        result["zero1-fp32"]["whole"]["weights"], result["zero1-bf16"]["whole"]["weights"]
    )
    assert 1e-7 < difference < 5e-2


def test_tied_weights_are_stored_once_and_unused_ones_decay(folder: Path) -> None:
    state = stored(folder / "zero3-fp32")
    names = {name for name, _ in state}
    assert "embedding.weight" in names and "decoder.weight" not in names
    assert not any(name == "derived" for name in names)
    result = results(folder, "resume")["zero3-fp32"]["whole"]["weights"]
    torch.manual_seed(0)
    assert state["unused.weight", "exp_avg"].abs().max() == 0
    assert state["unused.weight", "weight"].norm() > torch.tensor(result["unused.weight"]).norm() > 0


@pytest.mark.parametrize("layout", ["zero3", "zero1", "zero0", "zero3_offload", "zero2"])
def test_a_checkpoint_passes_through_every_stage_unchanged(folder: Path, layout: str) -> None:
    source, converted = stored(folder / "convert-source"), stored(folder / f"convert-{layout}")
    assert source.keys() == converted.keys()
    assert all(torch.equal(source[key], converted[key]) for key in source)


@pytest.mark.parametrize("layout", ["zero3", "zero1", "zero0", "zero3_offload", "zero2"])
def test_a_run_goes_on_in_another_stage_as_it_would_have(folder: Path, layout: str) -> None:
    result = results(folder, "convert")
    assert largest_difference(result["source"], result[layout]) < 2e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_that_is_not_finite_on_one_rank_changes_nothing_anywhere(folder: Path, layout: str) -> None:
    result = results(folder, "skip")[layout]
    assert result["flags"] == [False, False]
    assert result["vetoed"] is False
    assert result["untouched"]
    assert result["updates"] == 3


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_skipping_leaves_every_stage_at_the_same_weights_and_norms(folder: Path, layout: str) -> None:
    result = results(folder, "skip")
    assert result["zero0"]["norms"] == pytest.approx(result[layout]["norms"], rel=1e-5)
    assert largest_difference(result["zero0"]["weights"], result[layout]["weights"]) < 2e-6


def test_one_process_and_two_are_the_same_run(folder: Path) -> None:
    one, two, back = (results(folder, theme) for theme in ("one", "two", "back"))
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-5)
    assert one["losses"][1:] == pytest.approx(back["losses"], rel=1e-5)
    assert largest_difference(one["weights"], two["weights"]) < 2e-6
    assert largest_difference(one["weights"], back["weights"]) < 2e-6


def test_state_passes_from_two_processes_to_one_unchanged(folder: Path) -> None:
    two, one = stored(folder / "two"), stored(folder / "back")
    assert two.keys() == one.keys()
    assert all(torch.equal(two[key], one[key]) for key in two)


def test_all_ranks_fall_back_when_one_finds_damage(folder: Path) -> None:
    assert results(folder, "two")["damaged"]["steps"] == [3, 3]
