"""The one file that runs Slurm's commands. Floor 0, torch-free; every call has a time limit.

Jobs are named as Slurm prints them: "12", or "12_3" for a member of an array. What another program
says is parsed by functions of text, which tests feed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from dsvlp.errors import MissingDependency, SlurmError

UNKNOWN_JOB = "Invalid job id"

ENDED = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    ]
)
"""States of a job that runs nowhere and will not by itself."""


@dataclass(frozen=True)
class Partition:
    """What a partition has.

    Attributes:
        name: as `sbatch --partition` takes it.
        nodes: all of its nodes that are not switched off for good.
        gpus_per_node: the most that one of them has.
        time_limit_minutes: the longest job, None where there is no limit.
        is_default: jobs that name no partition come here.
        nodes_by_gpus: (GPUs, nodes with exactly so many), most GPUs first.
    """

    name: str
    nodes: int
    gpus_per_node: int
    time_limit_minutes: float | None
    is_default: bool = False
    nodes_by_gpus: tuple[tuple[int, int], ...] = ()

    def nodes_with(self, gpus: int) -> int:
        """Returns how many nodes have at least so many GPUs."""
        return sum(nodes for has, nodes in self.nodes_by_gpus if has >= gpus)


def run(command: list[str], seconds: float = 30, environment: Mapping[str, str] | None = None) -> str:
    """Returns what a command of Slurm prints.

    Args:
        command: program and arguments.
        seconds: after which the command is ended.
        environment: of the command; None: ours.

    Raises:
        MissingDependency: the program is not on this machine.
        SlurmError: it failed, or took too long.
    """
    name = command[0]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    except FileNotFoundError as error:
        raise MissingDependency(
            f"Slurm's command {name!r} is not on this machine",
            "a node of a Slurm cluster",
            "Log in to the cluster, or use `dsvlp train` here; tools/mini_slurm.sh starts one for trying out",
        ) from error
    except OSError as error:
        raise SlurmError(
            f"{name} cannot be started: {error.strerror}", fix="Check the installation"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(
            f"`{' '.join(command[:3])}` gave no answer within {seconds:.0f} s",
            fix="Slurm's controller may be busy or down: try again, and see `sinfo`",
        ) from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode} without a word"
        raise SlurmError(f"`{' '.join(command[:3])}` failed: {said}")
    return done.stdout


def is_available() -> bool:
    """Returns whether Slurm's commands are on this machine; its daemons may still be down."""
    return all(shutil.which(name) for name in ("sbatch", "squeue", "scontrol"))


def job_id(environment: Mapping[str, str] = os.environ) -> str | None:
    """Returns the job that this process belongs to, "12_3" for a member of an array; None outside of any."""
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def restart_count(environment: Mapping[str, str] = os.environ) -> int:
    """Returns how often Slurm started this job again; the variable is absent before the first time."""
    return int(environment.get("SLURM_RESTART_COUNT") or 0)


def job_state(job: str) -> str | None:
    """Returns a job's state, e.g. "RUNNING"; None where Slurm does not know the job any more.

    Raises:
        SlurmError: the controller gives no answer: the job may live.
    """
    try:
        told = run(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"])
    except SlurmError as error:
        if UNKNOWN_JOB in str(error):
            return None
        raise
    states = told.split()
    return states[0] if states else None


def job_fields(job: str) -> dict[str, str]:
    """Returns what `scontrol show job` knows of a job, by its names; empty where the job is unknown."""
    try:
        return parse_fields(run(["scontrol", "show", "job", "--oneliner", job]))
    except SlurmError as error:
        if UNKNOWN_JOB in str(error):
            return {}
        raise


def parse_fields(text: str) -> dict[str, str]:
    """Returns the `Name=value` pairs of a line of scontrol; values may hold blanks."""
    parts = re.split(r"(?:^|\s)([A-Z][\w:/&]*)=", text.strip())
    return {name: value.strip() for name, value in zip(parts[1::2], parts[2::2], strict=True)}


def end_time(job: str) -> float | None:
    """Returns when a job's time limit ends it, in seconds since the epoch; None where that is not known."""
    return parse_time(job_fields(job).get("EndTime", ""))


def parse_time(text: str) -> float | None:
    """Returns Slurm's local time "2026-11-22T16:00:00" in seconds since the epoch; None for "Unknown"."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def parse_minutes(text: str) -> float | None:
    """Returns a time limit "[days-]hours:minutes:seconds" in minutes; None for no limit.

    A shorter form is read as Slurm does: "30" minutes, "30:15" minutes and seconds, "2-12" days and hours.
    """
    days, dash, rest = text.rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        whole = int(days or 0) * 1440
    except ValueError:
        return None
    units = (60.0, 1.0, 1 / 60) if dash or len(parts) == 3 else (1.0, 1 / 60)
    return whole + sum(unit * part for unit, part in zip(units, parts, strict=False))


def requeue(job: str) -> None:
    """Ends a job and puts it into the queue again under its own id; raises `SlurmError` where forbidden."""
    run(["scontrol", "requeue", job])


def sacct(arguments: list[str], seconds: float = 60) -> str:
    """Returns what `sacct` prints; raises `SlurmError` where accounting is off or does not answer."""
    return run(["sacct", *arguments], seconds)


def partitions() -> list[Partition]:
    """Returns the cluster's partitions."""
    return parse_partitions(run(["sinfo", "--noheader", "--exact", "--format=%P|%D|%G|%l"]))


def parse_partitions(text: str) -> list[Partition]:
    """Returns the partitions of `sinfo --format=%P|%D|%G|%l`: one line for each kind of node of each."""
    found: dict[str, dict[int, int]] = {}
    limits: dict[str, float | None] = {}
    for line in text.splitlines():
        try:
            name, nodes, gres, limit = line.strip().split("|")
            gpus, count = gpu_count(gres), int(nodes)
        except ValueError as error:
            raise SlurmError(f"sinfo says {line!r}", "PARTITION|NODES|GRES|TIME LIMIT") from error
        by_gpus = found.setdefault(name, {})
        by_gpus[gpus] = by_gpus.get(gpus, 0) + count
        limits[name] = parse_minutes(limit)
    return [_partition(name, by_gpus, limits[name]) for name, by_gpus in found.items()]


def _partition(name: str, by_gpus: Mapping[int, int], limit: float | None) -> Partition:
    ordered = tuple(sorted(by_gpus.items(), reverse=True))
    most, _ = ordered[0]
    return Partition(name.rstrip("*"), sum(by_gpus.values()), most, limit, name.endswith("*"), ordered)


def gpu_count(gres: str) -> int:
    """Returns the GPUs of a node's generic resources, e.g. "gpu:h200:8(S:0-1),lustre:1" -> 8."""
    parts = re.sub(r"\([^)]*\)", "", gres).split(",")
    counts = [part.rsplit(":", 1)[-1] for part in parts if part.split(":")[0] == "gpu"]
    return sum(int(count) if count.isdigit() else 1 for count in counts)


def accounts(user: str) -> list[str]:
    """Returns the accounts that a user may charge; raises `SlurmError` where accounting is off."""
    told = run(
        ["sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user}", "format=account"]
    )
    return sorted(set(told.split()))
