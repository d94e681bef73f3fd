"""slurm/*.sh on a real Slurm: whatever befalls a job, its run ends with the weights of an undisturbed one.

Slow. Several jobs run at once; those that must not be preempted are in the partition "high".
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from dsvlp.accounting.ledger import read_ledger
from tests.engine.test_resume import hashes
from tests.slurm.conftest import ROOT, SMALL, Cluster, until

pytestmark = pytest.mark.slow

STEPS = 38
RECIPE = [*SMALL, f"schedule.steps={STEPS}", "checkpoint.every_steps=2", "model.text.dropout=0.1"]
START_SECONDS = 240.0  # two ranks import torch and build their engine; another job's may do so too


HIGH = ("--partition=high", "--nodes=2")


def script(name: str) -> str:
    return str(ROOT / "slurm" / name)


class Gated:
    """A job whose training waits at given steps.

    Attributes:
        job: Slurm's number.
        run: the run's folder.
    """

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        gates: list[int],
        *options: str,
        entry: tuple[str, ...] = ("pretrain.sh", "tiny_svl"),
        recipe: list[str] = RECIPE,
        **environment: str,
    ):
        self._cluster, self.run = cluster, cluster.folder / "runs" / name
        self._marks = cluster.folder / "runs" / f"{name}.gates"
        self.job = cluster.sbatch(
            *options, script(entry[0]), *entry[1:], *recipe, **environment,
            DSVLP_RUN=str(self.run), GATES=" ".join(map(str, gates)), REAL_PYTHON=sys.executable,
            DSVLP_PYTHON=str(ROOT / "tests" / "slurm" / "gated.sh"),
        )  # fmt: skip

    def comes_to(self, step: int) -> None:
        """Waits until training stands at a gate."""

        mark = self._marks / str(step)
        until(mark.exists, START_SECONDS, f"step {step}", lambda: self._cluster.tell(self.job), pause=0.5)

    def goes_on(self, step: int) -> None:
        """Opens a gate."""
        (self._marks / f"{step}.open").touch()

    def rank(self, rank: int) -> int:
        """Returns the process id of a rank, as this machine numbers it."""
        return self._process("--run", f"SLURM_PROCID={rank}")

    def batch_script(self) -> int:
        """Returns the process id of the batch script."""
        return self._process("dsvlp.launch.batch")

    def _process(self, word: str, *variables: str) -> int:
        wanted = {
            f"SLURM_JOB_ID={self.job}",
            f"SLURM_CONF={self._cluster.environment['SLURM_CONF']}",
            *variables,
        }
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environment, command = (
                    (process / name).read_bytes().decode(errors="replace").split("\0")
                    for name in ("environ", "cmdline")
                )
            except OSError:
                continue
            if wanted <= set(environment) and word in command and "srun" not in command:
                return int(process.name)
        raise AssertionError(f"no process of job {self.job} has {word} and {variables}")

    def outcomes(self) -> list[str]:
        return [attempt.outcome for attempt in read_ledger(self.run)]


@pytest.fixture(scope="module")
def peace(cluster: Cluster) -> Gated:
    """Returns the job that nothing befalls; others run beside it."""
    return Gated(cluster, "peace", [], *HIGH)


def test_a_real_time_limit_is_survived_bit_for_bit(cluster, peace):
    run = Gated(cluster, "limited", [5], *HIGH, "--time=1", "--signal=USR2@15")
    until(
        lambda: cluster.restarts(run.job) >= 1,
        150,
        "a restart after the limit",
        lambda: cluster.tell(run.job),
    )
    cluster.command("scontrol", "update", f"jobid={run.job}", "TimeLimit=20")
    run.goes_on(5)
    assert cluster.wait(run.job, START_SECONDS) == "COMPLETED"
    assert cluster.wait(peace.job, START_SECONDS) == "COMPLETED"
    assert hashes(run.run, STEPS) == hashes(peace.run, STEPS)
    warned, *_, finished = (json.loads(line) for line in (run.run / "requeues.jsonl").open())
    # On a machine so busy that ranks do not come to their first step within the minute, Slurm ends them.
    assert warned["exit_code"] in (75, 137) and warned["requeue"]
    assert finished["exit_code"] == 0 and not finished["requeue"]


def test_disturbed_seven_times_a_run_ends_as_if_it_had_been_left_in_peace(cluster, peace):
    run = Gated(cluster, "disturbed", [5, 10, 15, 20, 25, 30, 35], "--nodes=2", "--mem=12000")
    run.comes_to(5)
    urgent = cluster.sbatch("--partition=high", "--nodes=2", "--mem=12000", "--wrap=sleep 2")  # preemption
    run.comes_to(10)
    assert cluster.wait(urgent, 60) == "COMPLETED"
    cluster.command("scancel", "--signal=TERM", run.job)
    run.comes_to(15)
    cluster.command("scancel", "--signal=USR2", run.job)
    run.comes_to(20)
    os.kill(run.rank(1), signal.SIGKILL)
    run.goes_on(20)
    run.comes_to(25)
    cluster.kill_node(2)
    until(lambda: cluster.restarts(run.job) == 5, 60, "Slurm to requeue after a node's death")
    cluster.start_node(2)
    run.comes_to(30)
    cluster.command("scontrol", "requeue", run.job)
    run.comes_to(35)
    cluster.command("scontrol", "requeue", run.job)
    until(lambda: cluster.restarts(run.job) == 7, 60, "the seventh restart")
    assert cluster.wait(run.job, START_SECONDS) == "COMPLETED"
    assert cluster.wait(peace.job, START_SECONDS) == "COMPLETED"

    assert hashes(run.run, STEPS) == hashes(peace.run, STEPS)
    found = run.outcomes()
    assert found[:3] == ["stopped"] * 3 and found[-1] == "finished" and len(found) == 8, found
    assert found[4] == "died" and cluster.restarts(run.job) == 7
    listed = ["sacct", "-D", "-X", "-n", "-P", "-j", run.job, "-o", "State"]
    until(lambda: len(cluster.command(*listed).splitlines()) == 8, 20, "sacct to list eight starts")
    decisions = [json.loads(line) for line in (run.run / "requeues.jsonl").open()]
    assert [(d["exit_code"], d["requeue"]) for d in decisions[:3]] == [(75, True)] * 3
    assert decisions[-1]["why"] == "the run is finished"
    assert cluster.restarts(peace.job) == 0, "what is finished is not started again"


def test_a_second_job_on_the_same_folder_is_refused_and_the_owners_death_frees_it(cluster):
    owner = Gated(cluster, "shared", [5], "--partition=high", "--time=20")
    owner.comes_to(5)
    second = cluster.sbatch(
        "--partition=high", script("pretrain.sh"), "tiny_svl", *RECIPE, DSVLP_RUN=str(owner.run)
    )
    assert cluster.wait(second, START_SECONDS) == "FAILED"
    assert f"of Slurm job {owner.job}" in cluster.log(second) and "scancel" in cluster.log(second)
    assert cluster.restarts(second) == 0, "what a person must mend is not tried again"
    rank = owner.rank(0)
    os.kill(owner.batch_script(), signal.SIGKILL)  # else the job would go on by itself
    os.kill(rank, signal.SIGKILL)
    assert cluster.wait(owner.job, 60) == "FAILED"
    assert (owner.run / "lease.json").exists(), "it died without giving its lease back"
    third = cluster.sbatch(
        "--partition=high",
        "--no-requeue",
        script("pretrain.sh"),
        "tiny_svl",
        *RECIPE,
        DSVLP_RUN=str(owner.run),
    )
    assert cluster.wait(third, START_SECONDS) == "COMPLETED", cluster.log(third)
    assert f"Slurm runs its job {owner.job} no more" in cluster.log(third)
    assert owner.outcomes()[-1] == "finished"


def test_a_second_stage_from_staged_data_outlives_a_kill_where_requeueing_is_forbidden(cluster, peace):
    assert cluster.wait(peace.job, START_SECONDS) == "COMPLETED"
    (data,) = (cluster.folder / "cache" / "dsvlp").glob("synthetic-*")
    sources = [f'data.train=[{{path="{data}/train.beton"}}]', f"data.validation={data}/heldout.beton"]
    local, cpus = cluster.folder / "local", ("--partition=high", "--gpus-per-node=0", "--ntasks-per-node=2")
    run = Gated(
        cluster, "second", [3], *cpus, "--no-requeue",
        entry=("finetune.sh", "tiny_svl", str(peace.run)),
        recipe=[*SMALL, "schedule.steps=4", "checkpoint.every_steps=2", *sources], DSVLP_STAGE=str(local),
    )  # fmt: skip
    run.comes_to(3)
    assert len(list(local.glob(f"dsvlp-{run.job}/*.beton/manifest.json"))) == 2
    os.kill(run.rank(1), signal.SIGKILL)
    run.goes_on(3)
    assert cluster.wait(run.job, START_SECONDS) == "FAILED"
    (again,) = re.findall(r"submitted anew as job (\d+)", cluster.log(run.job))
    assert cluster.wait(again, START_SECONDS) == "COMPLETED", cluster.tell(again)
    assert run.outcomes()[-1] == "finished" and not list(local.iterdir()), "copies are removed"
    started = json.loads((run.run / "recipe.json").read_text())["start"]
    assert Path(started) == run.run / "start"

    scored = cluster.sbatch(*cpus, script("evaluate.sh"), str(run.run), "--pairs", "16")
    assert cluster.wait(scored, START_SECONDS) == "COMPLETED", cluster.log(scored)
    assert "retrieval" in json.loads((run.run / "scores.json").read_text()), cluster.log(scored)


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (["tiny_svl", "batch.global_pairs=24"], {}, "one of [1, 3] processes"),
        (["tiny_svl", "optimizer.rate=1"], {}, "unknown key 'optimizer.rate'"),
        ([], {}, "train RECIPE"),
        (["tiny_svl"], {"DSVLP_RUN": "/proc/run"}, "/proc/run"),
        (["tiny_svl"], {"DSVLP_CONTAINER": "docker:x"}, "apptainer, enroot, pyxis"),
        (["tiny_svl"], {"DSVLP_PYTHON": "/usr/bin/false"}, "Activate its environment"),
    ],
)
def test_what_a_person_must_mend_is_told_before_srun(cluster, arguments, environment, told):
    overrides = [*SMALL, *arguments[1:]] if arguments else []
    job = cluster.sbatch(
        "--partition=high", "-N2", script("pretrain.sh"), *arguments[:1], *overrides, **environment
    )
    assert cluster.wait(job, 60) == "FAILED"
    assert told in cluster.log(job), cluster.log(job)
    fields = cluster.fields(job)
    assert (fields["ExitCode"], fields["Restarts"]) == ("2:0", "0")
