"""A tiny SVL with all objectives and dropout is the same run however often it dies, bit for bit.

Slow: the stages take five launches of two processes, the elastic run two launches, the kills one process.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from safetensors import safe_open

from dsvlp.accounting.ledger import read_ledger
from dsvlp.engine.stop import STOPPED
from dsvlp.launch import local
from tests.engine.processes import ROOT
from tests.engine.test_train import SMALL, numbers

pytestmark = pytest.mark.slow

DROPOUT = ["model.text.dropout=0.1", "objectives.ssul={}", "batch.micro_pairs=4"]
QUERIES = ["model.visual_queries=4", "objectives.spl={}"]
PATIENCE = "engine.watchdog_seconds=900"
STAGES = {
    "zero0": [*DROPOUT, "engine.zero=zero0"],
    "zero1": [*DROPOUT, "engine.zero=zero1", *QUERIES],
    "zero2": [*DROPOUT, "engine.zero=zero2"],
    "zero3": [*DROPOUT, "engine.zero=zero3", *QUERIES],
    # The compiler may take minutes where others use the machine.
    "compiled": [*DROPOUT, "engine.compile=true", "engine.activation_checkpointing=full", PATIENCE],
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}


def train(environment, processes: int, *runs: tuple[Path, str, list[str]]) -> int:
    """Trains one run after the other in one launch; returns its exit code."""
    arguments: list[str] = []
    for folder, faults, overrides in runs:
        arguments += ["--", str(folder), faults, *SMALL, *overrides]
    script = str(Path(__file__).with_name("faulty_run.py"))
    return local.launch([sys.executable, script, *arguments[1:]], processes, environment)


def hashes(folder: Path, step: int) -> dict[tuple[str, str], str]:
    """Returns SHA-256 of every weight, moment and buffer, put together from the pieces in the files.

    Reads safetensors alone, none of the reader that resuming itself uses.
    """
    pieces = defaultdict(list)
    files = list((folder / "checkpoints" / f"step-{step:08d}").glob("*.safetensors"))
    for path in files:
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118, not a dict
                name, state, start = key.split("|")
                pieces[name.strip(), state.strip()].append((int(start), file.get_tensor(key).tobytes()))
    assert pieces, files
    return {
        key: hashlib.sha256(b"".join(data for _, data in sorted(found))).hexdigest()
        for key, found in pieces.items()
    }


def samples(folder: Path) -> dict[int, list[int]]:
    """Returns each step's samples over all ranks, sorted."""
    out: dict[int, list[int]] = defaultdict(list)
    for path in folder.with_name(f"{folder.name}.samples").iterdir():
        out[int(path.name.split("-")[0])] += json.loads(path.read_text())
    return {step: sorted(ids) for step, ids in out.items()}


def test_in_every_stage_six_steps_are_three_a_kill_and_three_bit_for_bit(tmp_path, environment, monkeypatch):
    monkeypatch.setattr(local, "GRACE_SECONDS", 2.0)
    whole = {name: (tmp_path / f"whole-{name}", "", keys) for name, keys in STAGES.items()}
    killed = {name: (tmp_path / f"cut-{name}", "kill:5:0 kill:5:1", keys) for name, keys in STAGES.items()}
    before = list(whole.values())
    for run in killed.values():
        assert train(environment, 2, *before, run) == 128 + 9
        assert not (run[0] / "checkpoints" / "step-00000006").exists()
        before = [(run[0], "", run[2])]
    assert train(environment, 2, *before) == 0

    for name in STAGES:
        one, other = (tmp_path / f"{kind}-{name}" for kind in ("whole", "cut"))
        expected = hashes(one, 6)
        assert {state for _, state in expected} >= {"weight", "exp_avg", "exp_avg_sq"}
        assert expected == hashes(other, 6), name
        assert numbers(one) == numbers(other), name
        assert samples(one) == samples(other), name
        dealt = samples(one)
        assert (
            len(dealt) == 6 and len({i for ids in dealt.values() for i in ids}) == 6 * 16
        )  # inside an epoch


def test_stages_processes_and_accumulation_may_change_under_way(tmp_path, environment):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    keys = ["model.text.dropout=0.0", "objectives.ssul={}", *QUERIES, "schedule.steps=10"]
    two, three, alone = (
        [*keys, f"engine.zero={zero}", f"batch.micro_pairs={micro}"]
        for zero, micro in (("zero2", 4), ("zero3", 4), ("zero2", 2))
    )
    # A stop that comes in step n ends the attempt after step n + 2.
    chain = [(cut, "stop:1:1", two), (cut, "stop:4:0", three), (cut, "stop:7:1", two)]
    assert train(environment, 2, *chain) == STOPPED
    assert [attempt.to_step for attempt in read_ledger(cut)] == [3, 6, 9]
    at_once = [*keys, "engine.zero=zero0", "batch.micro_pairs=16"]
    assert train(environment, 1, (cut, "", alone), (whole, "", at_once)) == 0

    assert samples(whole) == samples(cut)
    found = {line["step"]: line for line in numbers(cut) if "loss/total" in line}
    for line in numbers(whole):
        losses = {key: value for key, value in line.items() if key.startswith("loss/")}
        for key, value in losses.items():
            assert found[line["step"]][key] == pytest.approx(value, rel=1e-5), (line["step"], key)
    assert sorted(found) == list(range(1, 11))


def test_killed_at_twenty_moments_the_run_ends_as_if_it_had_been_left_in_peace(tmp_path, environment):
    killed, peace = tmp_path / "killed", tmp_path / "peace"
    keys = [*DROPOUT, *QUERIES, "checkpoint.every_steps=1", "schedule.steps=120", "watch.log_every_steps=5"]
    keys += ["watch.validate_every_steps=40", "watch.pictures_every_steps=0", "batch.micro_pairs=16"]
    command = [sys.executable, str(Path(__file__).with_name("killed_runs.py")), str(killed), str(peace)]
    told = subprocess.run(
        [*command, *SMALL, *keys], env=environment, capture_output=True, text=True, timeout=500
    )
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-4000:]
    assert hashes(killed, 120) == hashes(peace, 120)
    assert numbers(killed) == numbers(peace)
    assert not list((killed / "checkpoints").glob(".step-*")), "torn checkpoints were cleared"
