"""What is submitted to Slurm: a job as data, and the text of its batch script as a pure function of it.

A task holds no state: which run it goes on with stands in the script, by its place in the array, and
all else in the run's folder. So whatever starts the script again (Slurm after preemption or a dead
node, the requeuer after a kill or a time limit, a hand) goes on from the newest checkpoint.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dsvlp.errors import RunError
from dsvlp.launch import container

RUN = "DSVLP_RUN"
"""Environment variable of a task: the run's folder."""

SRUN = ("--wait=60",)
"""srun's arguments: once a task has ended, the others get a minute to say why before they are ended too."""

PASSED = (
    *("DSVLP_RUN", "OMP_NUM_THREADS", "PYTHONPATH", "PYTHONSAFEPATH", "SUBMITIT_EXECUTOR", "SLURM_JOB_ID"),
    *("SLURM_JOB_NODELIST", "SLURM_JOB_NUM_NODES", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS"),
    *("SLURM_PROCID", "SLURM_RESTART_COUNT", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS"),
)
"""Variables of a task, for a container that gets only those that it is told of."""

TASK = "task.pkl"
"""A copy of the task, under a name that does not follow the job's number."""

OVER = 3
"""Exit code of the budget's check where nothing more may start; any other lets the run go on."""

OWNED = {
    "job-name": "the run's folder",
    "nodes": "nodes",
    "ntasks-per-node": "gpus",
    "gpus-per-node": "gpus",
    "gres": "gpus",
    "time": "hours",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "signal": "hours",
    "array": "a sweep's members",
    "output": "the run's folder",
    "requeue": "max_restarts",
    "chdir": "the folder that you submit from",
}
"""Options of sbatch that follow from others of ours."""


@dataclass(frozen=True)
class Resources:
    """What a job asks for.

    Attributes:
        nodes: number of nodes.
        gpus: GPUs on each node, one process each; 0: one process a node, on the CPU.
        hours: time limit of one start; the run goes on after it.
        partition: Slurm's partition; None: the cluster's default.
        account: whom the hours are billed to; None: the user's default.
        qos: quality of service; None: the default.
        container: what the processes run in, `KIND:IMAGE` of apptainer, enroot or pyxis; None: nothing.
        options: other options of sbatch, without dashes, e.g. {"mem": "200G", "constraint": "h200"}.
    """

    nodes: int = 1
    gpus: int = 1
    hours: float = 1.0
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    container: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("gpus", 0)):
            if getattr(self, name) < least:
                raise RunError(f"{name} = {getattr(self, name)}", f"at least {least}")
        if not 1 / 60 <= self.hours < math.inf:
            raise RunError(f"hours = {self.hours:g}", "at least a minute: Slurm counts in whole ones")
        for name in self.options:
            owner = OWNED.get(name.replace("_", "-"))
            if owner is not None:
                raise RunError(f"the option --{name} of sbatch is set by dsvlp", fix=f"Use {owner}")

    @property
    def minutes(self) -> int:
        """The time limit as Slurm counts."""
        return math.ceil(self.hours * 60 - 1e-6)

    @property
    def world(self) -> int:
        """Processes of the run."""
        return self.nodes * max(1, self.gpus)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of one start that uses its whole time limit; on the CPU, process-hours."""
        return self.world * self.minutes / 60

    @property
    def warning_seconds(self) -> int:
        """How long before the time limit Slurm warns the run: time for a step and a checkpoint."""
        return max(10, min(300, 6 * self.minutes))


@dataclass(frozen=True)
class Job:
    """One submission: a run, or an array of them that share code and resources.

    Attributes:
        name: what squeue shows.
        runs: the runs' folders, in the order of the array.
        code: the copy of the code that the job runs.
        folder: where scripts, logs and pickles lie; private.
        resources: what each run gets.
        max_restarts: how often a failed run is started again.
        at_once: members of an array that run at the same time.
        sweep: the sweep's folder, whose budget each start asks; None for a run of its own.
        python: the interpreter, outside of a container.
        mounts: folders that a container has to show beside the runs' own: the data's.
        directory: where the job runs: paths of a recipe may be relative to it.
    """

    name: str
    runs: tuple[Path, ...]
    code: Path
    folder: Path
    resources: Resources
    max_restarts: int
    at_once: int = 1
    sweep: Path | None = None
    python: str = sys.executable
    mounts: tuple[Path, ...] = ()
    directory: Path = field(default_factory=Path.cwd)


def text(job: Job) -> str:
    """Returns the batch script, line by line what submitit writes for the same job."""
    flags = {**options(job), **submitits_own(job)}
    return "\n".join(
        [
            "#!/bin/bash",
            "",
            "# Parameters",
            *(_flag(name, flags[name]) for name in sorted(flags)),
            "",
            "# setup",
            *setup(job),
            "",
            "# command",
            "export SUBMITIT_EXECUTOR=slurm",
            command(job),
            "",
        ]
    )


def options(job: Job) -> dict[str, str | int | bool]:
    """Returns sbatch's options, as submitit names them."""
    wanted = job.resources
    named = {"partition": wanted.partition, "account": wanted.account, "qos": wanted.qos}
    gpus = {"gpus_per_node": wanted.gpus} if wanted.gpus else {}
    return {
        "job_name": job.name,
        "nodes": wanted.nodes,
        "ntasks_per_node": max(1, wanted.gpus),
        "time": wanted.minutes,
        "requeue": True,
        "chdir": str(job.directory),
        **gpus,
        **{name: value for name, value in named.items() if value is not None},
        **wanted.options,
    }


def submitits_own(job: Job) -> dict[str, str | int | bool]:
    """Returns the options that submitit adds of itself."""
    many = len(job.runs) > 1
    array = {"array": f"0-{len(job.runs) - 1}%{min(len(job.runs), job.at_once)}"} if many else {}
    log = f"{job.folder}/{'%A_%a' if many else '%j'}_0_log.out"
    return {"signal": f"USR2@{job.resources.warning_seconds}", "output": log, "open-mode": "append", **array}


def setup(job: Job) -> list[str]:
    """Returns the script's lines before srun: which run, which code, and who starts it again."""
    python, folder = shlex.quote(job.python), shlex.quote(str(job.folder))
    tasks = max(1, job.resources.gpus)
    number = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
    lines = [
        f"runs=({shlex.join(str(run) for run in job.runs)})",
        f'export {RUN}="${{runs[${{SLURM_ARRAY_TASK_ID:-0}}]}}"',
        # `python -m` would prefer the code of the folder that the job was submitted from.
        f"export PYTHONPATH={shlex.quote(str(job.code))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
        'export SLURM_RESTART_COUNT="${SLURM_RESTART_COUNT:-0}"',
        # srun gives a task one CPU unless it is told.
        f"cpus=$((${{SLURM_CPUS_ON_NODE:-{tasks}}} / {tasks}))",
        'export SRUN_CPUS_PER_TASK="$cpus" OMP_NUM_THREADS="${OMP_NUM_THREADS:-$cpus}"',
        # Submitted again under a new number, the job finds its task where the first one's was kept.
        f'task={folder}/"{number}_submitted.pkl"',
        f'[ -e "$task" ] || cp {folder}/{TASK} "$task" 2>/dev/null',
    ]
    if job.sweep is not None:
        lines.append(
            f"{python} -m dsvlp.launch.budget {shlex.quote(str(job.sweep))}; [ $? = {OVER} ] && exit 0"
        )
    requeue = f'{python} -m dsvlp.launch.requeue --run "${RUN}" --exit-code "$code"'
    return [
        *lines,
        "trap : TERM USR2  # this shell outlives srun, whose exit code decides",
        f"trap 'code=$?; {requeue} --max-restarts {job.max_restarts}; exit $code' EXIT",
    ]


def command(job: Job) -> str:
    """Returns the script's last line: srun, one task a process."""
    log = f"{job.folder}/{'%A_%a' if len(job.runs) > 1 else '%j'}_%t_log.out"
    srun = ["srun", "--unbuffered", "--output", log, *srun_arguments(job)]
    return f"{shlex.join(srun)} {python(job)} -u -m submitit.core._submit {shlex.quote(str(job.folder))}"


def srun_arguments(job: Job) -> list[str]:
    """Returns what srun is told beside submitit's own."""
    return [*SRUN, *_wrapped(job)[0]]


def python(job: Job) -> str:
    """Returns the command that starts Python in a task, inside the container where there is one."""
    return shlex.join(_wrapped(job)[1])


def _wrapped(job: Job) -> tuple[list[str], list[str]]:
    image = job.resources.container
    if image is None:
        return [], [job.python]
    array = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") if len(job.runs) > 1 else ()
    mounts = [job.code, job.folder, *job.runs, *job.mounts]
    return container.wrap(image, ["python3"], mounts, job.directory, (*PASSED, *array))


def _flag(name: str, value: str | int | bool) -> str:
    dashed = name.replace("_", "-")
    return f"#SBATCH --{dashed}" if value is True else f"#SBATCH --{dashed}={shlex.quote(str(value))}"
