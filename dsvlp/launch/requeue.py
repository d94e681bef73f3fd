"""The one requeuer: a batch script asks it, after srun ended, whether the job starts again.

    python -m dsvlp.launch.requeue --run RUN --exit-code "$code" --max-restarts 20 [-- SCRIPT'S ARGUMENTS]

Slurm itself requeues after preemption and the loss of a node, and nothing else; a killed task, a hang, a
broken network end the job. What is decided here is a pure function of the exit code, of what Slurm says
of the job, and of how its earlier starts ended, which `RUN/requeues.jsonl` remembers. Torch-free.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dsvlp import log as logs
from dsvlp import slurm
from dsvlp.accounting.ledger import read_ledger
from dsvlp.engine.stop import STOPPED
from dsvlp.errors import DsvlpError, SlurmError
from dsvlp.files import read_lines

log = logging.getLogger("dsvlp.launch.requeue")  # also where `python -m` calls it __main__

MAX_RESTARTS = 20
MENDABLE = 2
"""Exit code of an error that a person has to mend: started again, it would come again."""

FIRST_JOB = "DSVLP_FIRST_JOB"
"""Environment variable of a job that was submitted anew: the job whose failures count as its own."""

TRIES, PAUSE_SECONDS = 4, 15.0


@dataclass(frozen=True)
class Failure:
    """How a start ended that failed: at which step, by which exception; None where that is not known."""

    step: int | None
    error: str | None


@dataclass(frozen=True)
class Decision:
    """Whether the job starts again, and why."""

    requeue: bool
    why: str


def decide(
    exit_code: int,
    failures: Sequence[Failure],
    max_restarts: int,
    *,
    state: str = "RUNNING",
    reason: str = "None",
) -> Decision:
    """Returns whether a job whose run ended with `exit_code` starts again.

    Args:
        exit_code: srun's: the highest of the tasks', 128 + signal for a killed one.
        failures: of this job, oldest first, this one included; starts that stopped on request are none.
        max_restarts: after how many failures the next one is the last.
        state: what Slurm says of the job now.
        reason: Slurm's reason beside it.
    """
    if exit_code == 0:
        return Decision(False, "the run is finished")
    if state == "PENDING":
        return Decision(False, "Slurm has put the job into the queue already")
    if state != "RUNNING" and reason != "TimeLimit":
        return Decision(
            False, f"Slurm is ending the job itself ({state.lower()}): it was cancelled or requeued"
        )
    if exit_code == STOPPED:
        return Decision(True, "the run stopped on request and saved")
    if exit_code == MENDABLE:
        return Decision(False, "the error above has to be mended first")
    last = failures[-1]
    if last.error is not None and last in failures[:-1]:
        return Decision(False, f"step {last.step} failed twice in the same way: {last.error}")
    if len(failures) > max_restarts:
        return Decision(False, f"it failed {len(failures)} times; max_restarts is {max_restarts}")
    return Decision(True, f"failure {len(failures)} of at most {max_restarts}, exit code {exit_code}")


def what_failed(run: Path, job: str, restart: int) -> Failure:
    """Returns where this start of a job failed, as far as the run's ledger knows."""
    for attempt in reversed(read_ledger(run)):
        if (attempt.job, attempt.restart) == (job, restart):
            return Failure(attempt.step, attempt.error)
    return Failure(None, None)


def resubmission(
    fields: Mapping[str, str], environment: Mapping[str, str], arguments: Sequence[str]
) -> list[str]:
    """Returns the sbatch command that submits a job's script anew, with the resources it has now.

    What was given on the command line of sbatch is taken from the job; the rest stands in the script.

    Args:
        fields: of `slurm.job_fields`.
        environment: of the batch script.
        arguments: the script's.
    """
    told = {
        "job-name": fields.get("JobName"),
        "partition": fields.get("Partition"),
        "account": fields.get("Account"),
        "qos": fields.get("QOS"),
        "time": fields.get("TimeLimit"),
        "chdir": fields.get("WorkDir"),
        "output": fields.get("StdOut"),
        "array": environment.get("SLURM_ARRAY_TASK_ID"),
        "nodes": environment.get("SLURM_JOB_NUM_NODES"),
        "ntasks-per-node": environment.get("SLURM_NTASKS_PER_NODE"),
        "gpus-per-node": environment.get("SLURM_GPUS_PER_NODE"),
        "cpus-per-gpu": environment.get("SLURM_CPUS_PER_GPU"),
        "cpus-per-task": environment.get("SLURM_CPUS_PER_TASK"),
        "mem": fields.get("MinMemoryNode"),
        # The folder's lease is ours until this job is gone.
        "dependency": f"afterany:{environment.get('SLURM_JOB_ID')}",
    }
    options = [f"--{name}={value}" for name, value in told.items() if value not in (None, "", "(null)")]
    script = fields["Command"].removesuffix(" ".join(["", *arguments]))  # Slurm tells both in one
    return ["sbatch", "--parsable", *options, script, *arguments]


def start_again(
    job: str, run: Path, arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> str:
    """Requeues a job, or submits its script anew where that is forbidden; returns what was done.

    Raises:
        SlurmError: neither is possible, or the controller does not answer.
    """
    for left in reversed(range(TRIES)):
        try:
            slurm.requeue(job)
            return f"job {job} is requeued"
        except SlurmError as error:
            refusal = str(error)
            if any(word in refusal for word in ("disabled", "denied", "not permitted")):
                break
            if left == 0:
                raise
            log.warning("%s Trying again", error)
            time.sleep(PAUSE_SECONDS)
    # SLURM_* of this job would be taken for the next one's.
    kept = {
        name: value
        for name, value in environment.items()
        if name == "SLURM_CONF" or not name.startswith(("SLURM_", "SLURMD_"))
    }
    told = {"DSVLP_RUN": str(run.resolve()), FIRST_JOB: environment.get(FIRST_JOB, job)}
    command = resubmission(slurm.job_fields(job), environment, arguments)
    again = slurm.run(command, environment={**kept, **told})
    return f"this job may not be requeued: submitted anew as job {again.strip()}"


def act(run: Path, exit_code: int, max_restarts: int, arguments: Sequence[str]) -> Decision:
    """Decides for the job that this process belongs to, writes that down, and does it."""
    job = slurm.job_id()
    if job is None:
        return Decision(False, "this is no Slurm job")
    first, restart = os.environ.get(FIRST_JOB, job), slurm.restart_count()
    failure = what_failed(run, job, restart)
    fields = slurm.job_fields(job)
    if exit_code == 0 and fields.get("JobState") != "RUNNING":
        # Where Slurm ends a step (time limit, a dead node) srun has been seen to say 0 of tasks it gave up.
        exit_code = 128 + signal.SIGKILL
    failures = [] if exit_code in (0, STOPPED) else [*failures_of(run, first), failure]
    decision = decide(
        exit_code, failures, max_restarts, state=fields.get("JobState", ""), reason=fields.get("Reason", "")
    )
    record = {"first_job": first, "job": job, "restart": restart, "exit_code": exit_code, **asdict(failure)}
    try:
        _remember(run, {**record, **asdict(decision), "time": time.time()})
    except OSError as error:
        if failures:
            raise SlurmError(
                f"{run}/requeues.jsonl cannot be written ({error.strerror}): failures could not be counted",
                fix="Check space and rights, and submit again",
            ) from error
    if decision.requeue:
        log.info("%s", start_again(job, run, arguments))
    return decision


def failures_of(run: Path, first_job: str) -> list[Failure]:
    """Returns how the starts of a job failed so far, oldest first."""
    return [
        Failure(record["step"], record["error"])
        for record in read_lines(run / "requeues.jsonl")
        if record["first_job"] == first_job and record["exit_code"] not in (0, STOPPED)
    ]


def _remember(run: Path, record: Mapping[str, object]) -> None:
    with (run / "requeues.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def main(arguments: Sequence[str]) -> int:
    """Returns 0; the batch script ends with the run's own exit code whatever happens here."""
    parser = argparse.ArgumentParser(prog="python -m dsvlp.launch.requeue")
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--exit-code", type=int, required=True, help="srun's")
    parser.add_argument("--max-restarts", type=int, default=MAX_RESTARTS)
    parser.add_argument("arguments", nargs="*", help="of the batch script, should it be submitted anew")
    given = parser.parse_args(arguments)
    logs.setup(0)
    try:
        decision = act(given.run, given.exit_code, given.max_restarts, given.arguments)
    except DsvlpError as error:
        log.error("the job is not started again: %s", error)
        return MENDABLE
    log.info("%s: %s", "starting again" if decision.requeue else "not starting again", decision.why)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
