"""The whole loop on real processes: killed, stopped, resumed and cut differently, it is the same run."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsvlp.accounting.clock import PHASES
from dsvlp.accounting.ledger import Attempt, read_ledger
from dsvlp.engine.checkpoint import open_checkpoint
from dsvlp.engine.metrics import read_lines
from dsvlp.engine.stop import STOPPED
from dsvlp.launch import local
from tests import small
from tests.engine.processes import ROOT

SMALL = [
    *small.SVL,
    "schedule.steps=6",
    "checkpoint.every_steps=3",
    "watch.validate_every_steps=3",
    "watch.pictures_every_steps=4",
]
SPEED = ("time/", "speed/", "memory/")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}


def train(folder: Path, environment, processes: int, *overrides: str, faults: str = "") -> int:
    script = str(Path(__file__).with_name("faulty_run.py"))
    command = [sys.executable, script, str(folder), faults, *SMALL, *overrides]
    return local.launch(command, processes, environment)


def state(folder: Path, step: int) -> tuple[dict[tuple[str, str], torch.Tensor], dict]:
    """Returns every tensor of a checkpoint by (name, state), and its JSON without what time decides."""
    checkpoint = open_checkpoint(folder / "checkpoints" / f"step-{step:08d}")
    tensors = {key: checkpoint.reader.whole(*key) for key in checkpoint.reader.table()}
    counters = {key: value for key, value in checkpoint.state.items() if key != "clock"}
    return tensors, counters


def numbers(folder: Path) -> list[dict]:
    """Returns the lines of metrics.jsonl without what time decides."""
    lines = read_lines(folder / "metrics.jsonl")
    return [
        {k: v for k, v in line.items() if k != "device_seconds" and not k.startswith(SPEED)} for line in lines
    ]


def test_a_killed_run_goes_on_bit_for_bit_and_leaves_every_number_once(tmp_path, environment, monkeypatch):
    monkeypatch.setattr(local, "GRACE_SECONDS", 2.0)
    overrides = ["batch.micro_pairs=4", "model.text.dropout=0.1", "data.captions_per_image=2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(whole, environment, 2, *overrides) == 0
    assert train(cut, environment, 2, *overrides, faults="kill:5:0") == 128 + 9
    assert not (cut / "checkpoints" / "step-00000006").exists()
    assert train(cut, environment, 2, *overrides) == 0

    (expected, counters), (found, others) = state(whole, 6), state(cut, 6)
    assert counters == others
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
    assert numbers(whole) == numbers(cut)
    assert [line["step"] for line in numbers(cut) if "loss/total" in line] == [1, 2, 3, 4, 5, 6]
    attempts = read_ledger(cut)
    assert [(each.outcome, each.error) for each in attempts] == [("died", None), ("finished", None)]
    assert (attempts[1].from_step, attempts[1].to_step) == (3, 6)
    check_what_the_ledger_says(attempts[1])
    check_what_a_run_leaves(whole)


def check_what_the_ledger_says(attempt: Attempt) -> None:
    assert attempt.samples == 3 * 16 and attempt.flop_per_sample and attempt.peak_flops
    assert attempt.seconds.keys() == set(PHASES)
    assert all(attempt.seconds[phase] > 0 for phase in ("startup", "train", "data_wait", "validate", "save"))
    # All but what passes before the clock's first and after its last look.
    assert sum(attempt.seconds.values()) == pytest.approx(attempt.wall_seconds, abs=1.0)


def check_what_a_run_leaves(folder: Path) -> None:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert tags["images"] == ["inputs/joint"]
    assert {"loss/total", "loss/mlm", "metrics/itm/accuracy", "optimizer/gradient_norm"} <= set(
        tags["scalars"]
    )
    assert any("masked_words" in tag for tag in tags["tensors"])
    line = next(line for line in read_lines(folder / "metrics.jsonl") if "time/data" in line)
    split = {name.removeprefix("time/") for name in line if name.startswith("time/")}
    assert split == {"data", "prepare", "forward", "backward", "step", "other", "save"}
    assert 0 < line["speed/mfu_of_matmul"] < 1
    validation = [line for line in numbers(folder) if "validation/loss/total" in line]
    assert [line["step"] for line in validation] == [3, 6]
    assert validation[0]["validation/constant/itm"] == pytest.approx(0.6931, abs=0.01)
    assert {"recipe.json", "manifest.json", "tokenizer", "logs"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "lease.json").exists()


def test_a_run_stopped_on_two_processes_goes_on_on_one_in_another_stage(tmp_path, environment):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    both = ["model.text.dropout=0.0", "watch.validate_every_steps=2"]
    alone = ["batch.micro_pairs=16", "engine.zero=zero2", *both]
    pair = ["batch.micro_pairs=4", "engine.zero=zero1", *both]
    assert train(whole, environment, 1, *alone, faults="nan:2:0") == 0
    # The signal comes to rank 1 alone, during step 2; step 3 brings it to all, who read it after step 4.
    # Step 2 is not finite on rank 1 alone, and skipped on both.
    assert train(cut, environment, 2, *pair, faults="stop:2:1 nan:2:1") == STOPPED
    stopped = json.loads((cut / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert (stopped["step"], stopped["data"]["steps"], stopped["skipped"]) == (4, 4, 1)
    assert train(cut, environment, 1, *alone) == 0

    counts = [
        (line["step"], line["validation/count/itm"])
        for line in numbers(cut)
        if "validation/count/itm" in line
    ]
    # No pair twice, no padding counted; the validation that the stop left out was made up for.
    assert counts == [(2, 40), (4, 40), (6, 40)]
    for expected, found in zip(numbers(whole), numbers(cut), strict=True):
        assert expected["step"] == found["step"]
        for name, value in expected.items():
            if name.startswith(("loss/", "validation/loss/")) and value != "nan":
                assert found[name] == pytest.approx(value, rel=1e-5), (found["step"], name)
    assert [(attempt.outcome, attempt.processes) for attempt in read_ledger(cut)] == [
        ("stopped", 2),
        ("finished", 1),
    ]


def test_a_run_whose_loss_stays_nan_ends_and_names_its_samples(tmp_path, environment):
    overrides = ["batch.micro_pairs=16", "engine.max_skipped_steps=2", "schedule.steps=50"]
    assert train(tmp_path, environment, 1, *overrides, faults="nan:always:0") == 2
    dumped = json.loads((tmp_path / "non_finite-rank-0.json").read_text())["steps"]
    assert [entry["step"] for entry in dumped][:2] == [1, 2]
    assert all(len(entry["samples"]) == 16 for entry in dumped)
    (attempt,) = read_ledger(tmp_path)
    assert attempt.error is not None and attempt.error.startswith("RunError: the loss or its gradient")
    assert "not finite 2 steps in a row" in (tmp_path / "logs" / "rank-0.log").read_text()
    assert not list((tmp_path / "checkpoints").glob("step-*"))
