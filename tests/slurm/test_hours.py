"""GPU-hours on a real Slurm: equal to Elapsed x AllocTRES of the accounting, and to this test's own clock.

One launch of jobs, many checks: a requeued job, one whose first start came to nothing, an array, a run that
trains, a job of no run. Slow: about a minute.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from dsvlp.accounting.ledger import read_ledger
from tests.slurm.conftest import SMALL, Cluster, until

pytestmark = pytest.mark.slow

WORK = Path(__file__).with_name("ledger_job.py")
AGREES_WITHIN_SECONDS = 2.0

SCRIPT = """#!/bin/bash
date +%s.%N >> "{clock}"
{body}
date +%s.%N >> "{clock}"
"""
REQUEUED = """
if [ -z "$SLURM_RESTART_COUNT" ]; then {work} "{run}" 0 4 0.5 hang
else {work} "{run}" 2 6 0.5 finished; fi
"""
NOTHING_FIRST = """
if [ -z "$SLURM_RESTART_COUNT" ]; then sleep 100; else {work} "{run}" 0 2 0.5 finished; fi
"""
MEMBER = '{work} "{run}-$SLURM_ARRAY_TASK_ID" 0 $((2 + 2 * SLURM_ARRAY_TASK_ID)) 0.5 finished'
TRAINED = (
    'srun {python} -m dsvlp train tiny_svl {small} schedule.steps=3 checkpoint.every_steps=2 --run "{run}"'
)
OF_NO_RUN = "sleep 2"


HANGS_SECONDS = 4.0
"""How long the requeued job at least does nothing: Slurm counts in whole seconds."""


@dataclass
class Jobs:
    """What was submitted, when this test itself saw it begin and end, and what `dsvlp hours` told.

    Attributes:
        number: name of a job -> its number.
        walls: name of a job -> wall seconds of its incarnations by this test's clock.
        running: `dsvlp hours` of the folder while the requeued job ran.
        told: the same when all had ended.
    """

    number: dict[str, str]
    walls: dict[str, list[float]]
    running: dict
    told: dict

    def charges(self, name: str) -> list[dict]:
        return [c for c in self.told["charges"] if c["job"] and c["job"].split("_")[0] == self.number[name]]


def hours(cluster: Cluster, *words: str) -> dict:
    cluster.command(sys.executable, "-m", "dsvlp", "hours", *words, "--json", "hours.json", seconds=60)
    return json.loads((cluster.folder / "hours.json").read_text())


def accounting(cluster: Cluster) -> list[tuple[str, int, int]]:
    """Returns (job, elapsed seconds, GPUs) of every incarnation that had nodes, without our parser."""
    text = cluster.command("sacct", "-XDnP", "--starttime=2000-01-01", "--format=JobID,ElapsedRaw,AllocTRES")
    out = []
    for job, elapsed, tres in (line.split("|") for line in text.splitlines()):
        gpus = [int(part.split("=")[1]) for part in tres.split(",") if part.startswith("gres/gpu=")]
        if int(elapsed):
            out.append((job, int(elapsed), sum(gpus)))
    return out


def submit(cluster: Cluster, name: str, body: str, *options: str) -> str:
    path = cluster.folder / f"{name}.sh"
    work = f"{sys.executable} {WORK}"
    body = body.format(
        work=work, run=cluster.folder / "runs" / name, python=sys.executable, small=" ".join(SMALL)
    )
    path.write_text(SCRIPT.format(clock=cluster.folder / f"{name}.clock", body=body))
    return cluster.sbatch(f"--job-name={name}", *options, str(path))


def times(cluster: Cluster, name: str) -> list[float]:
    path = cluster.folder / f"{name}.clock"
    return [float(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture(scope="module")
def jobs(cluster: Cluster) -> Jobs:
    number = {
        "again": submit(cluster, "again", REQUEUED, "--gres=gpu:2", "--ntasks=2"),
        "nothing": submit(cluster, "nothing", NOTHING_FIRST, "--gres=gpu:1"),
        "array": submit(cluster, "array", MEMBER, "--gres=gpu:1", "--array=0-2%2"),
        "trained": submit(cluster, "trained", TRAINED, "--gres=gpu:1"),
        "other": submit(cluster, "other", OF_NO_RUN, "--gres=gpu:4"),
    }
    again = cluster.folder / "runs" / "again"
    until(lambda: any(each.to_step == 4 for each in read_ledger(again)), 60, "four steps", pause=0.2)
    running = hours(cluster, str(again))
    time.sleep(HANGS_SECONDS)
    killed = {}
    for name in ("again", "nothing"):
        killed[name] = time.time()
        cluster.command("scontrol", "requeue", number[name])
    for job in number.values():
        assert cluster.wait(job, 150) == "COMPLETED", cluster.log(job)
    walls = {}
    for name in ("again", "nothing"):
        first, second, end = times(cluster, name)
        walls[name] = [killed[name] - first, end - second]
    for name in ("trained", "other"):
        begin, end = times(cluster, name)
        walls[name] = [end - begin]
    told: dict = {}

    def is_settled() -> bool:
        told.update(hours(cluster, "--user", "root"))
        told["charges"] = [c for c in told["charges"] if (c["job"] or "").split("_")[0] in number.values()]
        return len(told["charges"]) == 9 and all(
            charge["source"] == "sacct" and charge["outcome"] in ("finished", "died", "requeued", "completed")
            for charge in told["charges"]
        )

    until(is_settled, 60, "sacct to know all jobs", lambda: json.dumps(told, indent=1), pause=1.0)
    return Jobs(number, walls, running, told)


def test_billed_is_elapsed_times_alloctres_exactly(cluster, jobs):
    """Every incarnation of every job, exact to the second; the cluster serves other tests, too."""
    own = jobs.number.values()
    expected = sorted((job, s * gpus) for job, s, gpus in accounting(cluster) if job.split("_")[0] in own)
    assert sorted((c["job"], c["billed"]) for c in jobs.told["charges"]) == expected
    assert len(expected) == 9 and all(billed > 0 for _, billed in expected)


def test_every_start_agrees_with_this_tests_own_clock(jobs):
    for name, walls in jobs.walls.items():
        told = [charge["seconds"] for charge in jobs.charges(name)]
        assert told == pytest.approx(walls, abs=AGREES_WITHIN_SECONDS), name


def test_a_requeued_job_tells_what_was_lost_and_what_was_made_again(jobs):
    first, second = jobs.charges("again")
    assert [first["outcome"], second["outcome"]] == ["died", "finished"]
    assert (first["to_step"], second["from_step"], second["to_step"]) == (4, 2, 8)
    assert first["spent"]["train"] == pytest.approx(2 * 4 * 0.5, abs=0.4)
    assert first["spent"]["failed"] > 0  # it hung until it was killed
    assert second["spent"]["redone"] == pytest.approx(2 * 2 * 0.5, abs=0.2)
    assert second["spent"]["train"] == pytest.approx(2 * 4 * 0.5, abs=0.4)
    assert (first["samples"] + second["samples"], second["redone_samples"]) == (8, 2)
    for charge in (first, second):
        assert sum(charge["spent"].values()) == pytest.approx(charge["billed"])


def test_a_start_that_came_to_nothing_is_billed_to_its_run_as_failed(jobs):
    first, second = jobs.charges("nothing")
    assert first["run"] == second["run"] == "runs/nothing"
    assert first["attempts"] == [] and first["spent"]["failed"] == first["billed"] > 0
    assert second["outcome"] == "finished" and second["spent"]["failed"] == 0


def test_the_members_of_an_array_are_jobs_of_their_own(jobs):
    members = sorted(jobs.charges("array"), key=lambda charge: charge["job"])
    assert [charge["job"] for charge in members] == [f"{jobs.number['array']}_{i}" for i in range(3)]
    assert [charge["run"] for charge in members] == [f"runs/array-{i}" for i in range(3)]
    assert [charge["to_step"] for charge in members] == [2, 4, 6]


def test_a_run_that_trains_explains_its_time(jobs):
    (charge,) = jobs.charges("trained")
    assert (charge["run"], charge["outcome"], charge["to_step"]) == ("runs/trained", "finished", 3)
    spent = charge["spent"]
    assert all(spent[reason] > 0 for reason in ("train", "startup", "data_wait", "save"))
    assert abs(spent["unexplained"]) < AGREES_WITHIN_SECONDS
    assert charge["samples"] == 48 and charge["flops"] > 0
    (run,) = (line for line in jobs.told["runs"] if line["name"] == "runs/trained")
    assert 0 < run["mfu"] < 1 and run["peak_kind"] == "matmul"


def test_a_job_of_no_run_is_billed_and_unknown(jobs):
    (charge,) = jobs.charges("other")
    assert charge["run"] == "job other" and charge["spent"]["unknown"] == charge["billed"] > 0


def test_a_running_job_is_told_live(jobs):
    (charge,) = jobs.running["charges"]
    assert charge["outcome"] == "running" and charge["to_step"] == 4
    assert any("1 still running" in note for note in jobs.running["notes"])
