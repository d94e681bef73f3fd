"""A submitted run on a real Slurm: whatever ends a start, the run goes on from its folder and ends."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsvlp.accounting.ledger import read_ledger
from dsvlp.files import read_lines
from tests.slurm.conftest import SMALL, Cluster, until

pytestmark = pytest.mark.slow

STEPS = 300
LONG = [*SMALL, f"schedule.steps={STEPS}", "checkpoint.every_steps=20", "watch.validation_pairs=16"]


def submit(cluster: Cluster, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dsvlp", "submit", "tiny_svl", *arguments]
    return subprocess.run(
        command,
        env=cluster.environment,
        cwd=cluster.folder,
        timeout=seconds,
        capture_output=True,
        text=True,
    )


def step(run: Path) -> int:
    return max((line["step"] for line in read_lines(run / "metrics.jsonl")), default=0)


def ranks(run: Path) -> Iterator[tuple[int, int]]:
    """Yields (rank, process id) of a run's living training processes."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"train" in command and os.fsencode(run) in command:
            rank = next(item for item in environment if item.startswith(b"SLURM_PROCID="))
            yield int(rank.partition(b"=")[2]), int(process.name)


def test_killed_and_preempted_a_run_goes_on_from_its_folder_and_ends(cluster):
    run = cluster.folder / "submitted run"
    arguments = [*LONG, "--nodes", "2", "--gpus", "1", "--hours", "0.2", "--run", str(run)]
    done = submit(cluster, *arguments, "--max-restarts", "2")
    assert done.returncode == 0, done.stderr
    job = done.stdout.split(",")[0].removeprefix("job ")
    log = run / "slurm" / f"{job}_0_log.out"

    def told() -> str:
        text = log.read_text() if log.exists() else ""
        return f"state {cluster.state(job)}\n{text[-4000:]}"

    def past(number: int) -> None:
        def is_past() -> bool:
            return step(run) >= number and bool(list(ranks(run)))

        until(is_past, 120, f"step {number}", told, pause=0.1)

    past(30)
    assert "is submitted already: job" in submit(cluster, *arguments).stderr
    os.kill(dict(ranks(run))[1], signal.SIGKILL)
    until(lambda: len(read_ledger(run)) == 2, 90, "a second attempt", told)
    past(60)
    cluster.command(
        "sbatch", "-p", "high", "-N", "2", "--gpus-per-node=4", "--wrap", "sleep 1", "-o", "/dev/null"
    )
    until(lambda: cluster.restarts(job) == 2, 60, "the preemption", told)
    assert cluster.wait(job, 150) == "COMPLETED", told()

    attempts = read_ledger(run)
    assert [each.outcome for each in attempts][1:] == ["stopped", "finished"], attempts
    assert attempts[0].outcome in ("died", "failed")  # rank 0 may have come to say that its peer is gone
    assert [(each.job, each.restart) for each in attempts] == [(job, 0), (job, 1), (job, 2)]
    assert attempts[2].from_step == attempts[1].to_step >= 60 and attempts[2].to_step == STEPS
    assert [line["step"] for line in read_lines(run / "metrics.jsonl") if "loss/total" in line] == list(
        range(1, STEPS + 1)
    )
    manifest = json.loads((run / "manifest.json").read_text())
    (copy,) = (run / "code").iterdir()  # made once: the checkout may have changed since
    assert manifest["command"][0] == f"{copy}/dsvlp/__main__.py"
    assert stat.S_IMODE((run / "slurm").stat().st_mode) == 0o700
    assert "Caught signal" not in log.read_text()  # submitit's handler never acted


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--gpus", "2", "--nodes", "3"], "2 with 4"),
        (["--gpus", "3"], "one of [1, 2] processes"),
        (["--gpus", "5", "batch.global_pairs=40"], "2 with 4"),
        (["--gpus", "1", "--partition", "hihg"], "Did you mean 'high'"),
        (["--gpus", "1", "--account", "nobody"], "may not charge the account 'nobody'"),
        (["--gpus", "1", "--sbatch", "constraint=h900"], "Invalid feature specification"),
        (["--gpus", "1", "--run", "/proc/run"], "/proc/run cannot be made"),
    ],
)
def test_what_could_never_run_is_refused_on_the_login_node(cluster, wrong, said):
    place = [] if "--run" in wrong else ["--run", str(cluster.folder / "refused")]
    done = submit(cluster, *SMALL, "--hours", "1", *wrong, *place)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert cluster.command("squeue", "--noheader", "--format=%j").count("refused") == 0
