"""A sweep on a real Slurm: one member fails, one is killed; the table is right and the budget holds."""

from __future__ import annotations

import os
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dsvlp.accounting import sacct
from dsvlp.accounting.ledger import read_ledger
from dsvlp.errors import RunError
from dsvlp.launch import progress, sweep
from dsvlp.launch.sweep import Resources
from tests.slurm.conftest import SMALL, until
from tests.slurm.test_submit import ranks, step

pytestmark = pytest.mark.slow

FAILS, KILLED = 3, 5
STEPS = 40
ALL = [*SMALL, f"schedule.steps={STEPS}", "checkpoint.every_steps=10", "watch.validation_pairs=16"]


@pytest.fixture
def here(cluster, monkeypatch):
    """The cluster, with this process as its user."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(cluster.folder)
    return cluster


def members(here) -> list[dict[str, object]]:
    """Eight learning rates; one has no data yet, one has more steps, so that there is time to kill it."""
    out = [{"optimizer.lr": 1e-3 * (1 + index)} for index in range(8)]
    out[FAILS]["data.train"] = [{"path": str(here.folder / "late.beton")}]
    out[KILLED]["schedule.steps"] = 150
    return out


def test_of_eight_members_one_fails_one_is_killed_and_the_table_is_right(here):
    with pytest.raises(RunError, match=r"0.8 GPU-hours"):
        sweep.submit(
            "tiny_svl", members(here), here.folder / "s", Resources(hours=0.1), budget_gpu_hours=0.79
        )
    made = sweep.submit(
        "tiny_svl",
        members(here),
        here.folder / "s",
        Resources(hours=0.1),
        overrides=ALL,
        at_once=2,
        max_restarts=1,
        budget_gpu_hours=0.8,
    )
    runs = [made.run(member) for member in made.members]
    job = made.submissions[0].job
    most = 0

    def states() -> list[str]:
        nonlocal most
        told = here.command("squeue", "--array", "--noheader", "--format=%i %T").splitlines()
        most = max(most, sum("RUNNING" in line for line in told))
        return told

    def killable() -> bool:
        return bool(states()) and step(runs[KILLED]) >= 20

    until(killable, 400, "the member that is killed", lambda: str(states()))
    ((_, process),) = ranks(runs[KILLED])
    os.kill(process, signal.SIGKILL)

    def ended() -> bool:
        return not states()

    until(ended, 400, "all members to end", lambda: str(states()))
    assert most == 2

    told = progress.read(made)
    expected = ["finished"] * 8
    expected[FAILS] = "failed"
    assert [each.state for each in told] == expected, told
    assert [each.attempts for each in told] == [2 if index == KILLED else 1 for index in range(8)]
    assert [each.step for each in told] == [{FAILS: 0, KILLED: 150}.get(index, STEPS) for index in range(8)]
    assert "late.beton" in (told[FAILS].error or "")
    assert all((each.validation is None) == (each.state == "failed") for each in told)
    outcomes = [[attempt.outcome for attempt in read_ledger(run)] for run in runs]
    assert outcomes[KILLED] == ["died", "finished"]

    def billed_is_slurms() -> bool:  # which lags by seconds
        rows = sacct.of_jobs([job])
        hours = sum(each.gpu_hours for each in progress.read(made))
        return len(rows) == 9 and hours == pytest.approx(sum(r.seconds * r.gpus for r in rows) / 3600)

    until(billed_is_slurms, 20, "Slurm's accounting", lambda: str(sacct.of_jobs([job])))
    assert sum(each.gpu_hours for each in told) < 0.8

    (board,) = [path for path in (runs[0] / "tensorboard").glob("events*")]
    events = EventAccumulator(str(board), {"tensors": 0})
    events.Reload()
    assert "_hparams_/experiment" in events.summary_metadata
    assert "final/loss/total" in events.Tags()["tensors"] + events.Tags()["scalars"]

    # What failed is mended and started again; the others are left alone.
    (train,) = (here.folder / "cache").glob("dsvlp/synthetic-*/train.beton")
    (here.folder / "late.beton").symlink_to(train)
    before = {
        path: path.stat().st_mtime_ns for i, run in enumerate(runs) if i != FAILS for path in run.rglob("*")
    }
    again = sweep.retry(made.folder)
    assert again.submissions[-1].members == [FAILS]
    assert here.wait(again.submissions[-1].job, 100) == "COMPLETED"
    told = progress.read(again)
    assert [each.state for each in told] == ["finished"] * 8
    assert told[FAILS].attempts == 2 and told[FAILS].step == STEPS
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_at_its_budget_a_sweep_starts_nothing_more(here):
    made = sweep.submit(
        "tiny_svl",
        [{"seed": seed} for seed in range(3)],
        here.folder / "spent",
        Resources(hours=0.1),
        overrides=ALL,
        at_once=1,
        budget_gpu_hours=1e-6,
        over_budget="stop",
    )

    def ended() -> bool:
        return not here.command("squeue", "--noheader", "--format=%i")

    until(ended, 100, "the sweep to end", lambda: here.command("squeue"))
    # The first may have started before Slurm's accounting knew of it.
    assert [each.state for each in progress.read(made)][1:] == ["over budget"] * 2
    assert [read_ledger(made.run(member)) for member in made.members[1:]] == [[], []]
