"""What slurm/*.sh run on a job's first node: look first, then srun with one task a GPU, then the requeuer.

    python -m dsvlp.launch.batch train RECIPE [KEY=VALUE...]
    python -m dsvlp.launch.batch finetune RECIPE FROM [KEY=VALUE...]
    python -m dsvlp.launch.batch evaluate RUN [OPTIONS]

The scripts' headers say what can be set. Whatever a person has to mend is refused before srun, with
exit code 2, which is not requeued. Torch-free: the node's own Python needs no more than a login node's.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dsvlp import config, recipe, slurm
from dsvlp import log as logs
from dsvlp.data.staged import STAGED
from dsvlp.engine import exported
from dsvlp.errors import DsvlpError, RunError
from dsvlp.files import write_json
from dsvlp.launch import container, local, preflight, requeue

log = logging.getLogger("dsvlp.launch.batch")  # also where `python -m` calls it __main__

USAGE = "train RECIPE [KEY=VALUE...] | finetune RECIPE FROM [KEY=VALUE...] | evaluate RUN [OPTIONS]"
GRACE_SECONDS = 60
"""Once a task has ended, the others get so long to save, or to say why they fail."""


@dataclass(frozen=True)
class Shape:
    """How a job's processes lie on its nodes.

    Attributes:
        nodes: of the job.
        tasks_per_node: processes on each; one a GPU.
        cpus_per_task: CPUs of each.
    """

    nodes: int
    tasks_per_node: int
    cpus_per_task: int

    @property
    def world(self) -> int:
        """Processes of the run."""
        return self.nodes * self.tasks_per_node


def shape(environment: Mapping[str, str]) -> Shape:
    """Returns the shape of this job: tasks as asked for, else one for each GPU, else one a node."""
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
    gpus = int(environment.get("SLURM_GPUS_ON_NODE") or 0)
    asked = int(environment.get("SLURM_NTASKS_PER_NODE") or 0)
    tasks = asked or gpus or max(1, int(environment.get("SLURM_NTASKS") or 0) // nodes)
    cpus = int(environment.get("SLURM_CPUS_ON_NODE") or tasks)
    return Shape(nodes, tasks, max(1, cpus // tasks))


def run_folder(name: str, environment: Mapping[str, str]) -> Path:
    """Returns `DSVLP_RUN`, else `runs/RECIPE-JOB` where the job was submitted: the same for each restart."""
    job = slurm.job_id(environment)
    if job is None:
        raise RunError(
            "this is no Slurm job", "to be submitted", "sbatch slurm/pretrain.sh RECIPE; or use `dsvlp train`"
        )
    given = environment.get("DSVLP_RUN")
    return Path(given or Path("runs") / f"{Path(name).stem}-{job}").resolve()


class Job:
    """One start of a batch job.

    Args:
        folder: the run's.
        environment: of the batch script.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.shape = folder, shape(environment)
        self._environment = dict(environment)
        if not int(environment.get("SLURM_GPUS_ON_NODE") or 0):
            for name in ("SLURM_GPUS_PER_NODE", "SLURM_CPUS_PER_GPU"):
                self._environment.pop(name, None)  # "0 GPUs" is refused by srun
        self._mounts = [folder, *map(Path, filter(None, environment.get("PYTHONPATH", "").split(":")))]
        self._staged: Path | None = None

    def command(self, arguments: Sequence[str], tasks_per_node: int, nodes: int) -> list[str]:
        """Returns the srun command that runs `python ARGUMENTS` in each task, in a container if set."""
        srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes * tasks_per_node}"]
        srun += [f"--ntasks-per-node={tasks_per_node}", f"--cpus-per-task={self.shape.cpus_per_task}"]
        srun += [f"--wait={GRACE_SECONDS}"]
        image = self._environment.get("DSVLP_CONTAINER")
        if not image:
            return [*srun, self._environment.get("DSVLP_PYTHON", sys.executable), *arguments]
        inside = ["python3", *arguments]
        options, wrapped = container.wrap(image, inside, self._mounts, Path.cwd(), self._environment)
        return [*srun, *options, *wrapped]

    def run(self, arguments: Sequence[str]) -> int:
        """Runs `dsvlp ARGUMENTS` as the job's ranks; returns the exit code, 128 + signal of a killed task."""
        port = local.meeting_port(self._environment)
        threads = self._environment.get("OMP_NUM_THREADS", str(self.shape.cpus_per_task))
        told = {"MASTER_PORT": str(port), "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        command = self.command(["-m", "dsvlp", *arguments], self.shape.tasks_per_node, self.shape.nodes)
        log.info("%s", " ".join(command))
        return _wait(command, {**self._environment, **told})

    def once(self, arguments: Sequence[str], nodes: int = 1) -> int:
        """Runs `python ARGUMENTS` once on each of so many nodes; returns the exit code."""
        return _wait(self.command(arguments, 1, nodes), self._environment)

    def stage(self, resolved: recipe.Recipe) -> None:
        """Copies the recipe's data sets to each node's own disk, where `DSVLP_STAGE` names a folder there.

        A container sees them where they are, and there.
        """
        parent = self._environment.get("DSVLP_STAGE")
        data = resolved.data
        named = [path for source in data.train for path in (source.path, source.features)]
        sources = [*filter(None, [*named, data.validation, data.validation_features])]
        read = [*sources, *filter(None, [resolved.start, resolved.data.tokenizer])]
        self._mounts += [Path(path).resolve() for path in read if Path(path).exists()]
        if not parent or not sources:
            return
        self._staged = Path(parent) / f"dsvlp-{slurm.job_id(self._environment)}"
        self._environment[STAGED] = str(self._staged)
        self._mounts.append(Path(parent))
        arguments = ["-m", "dsvlp.launch.staging", "copy", str(self._staged), *sources]
        if self.once(arguments, self.shape.nodes) != 0:
            log.warning("data could not be staged on every node: where it was not, it is read where it is")

    def clean(self) -> None:
        """Removes the staged copies."""
        if self._staged is not None:
            self.once(["-m", "dsvlp.launch.staging", "remove", str(self._staged)], self.shape.nodes)


def _wait(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Returns the exit code of srun. A stop signal for this process alone is handed on.

    As USR2, which srun passes to the tasks; at SIGTERM it would end them at once.
    """
    child = subprocess.Popen(command, env=environment)

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(signal.SIGUSR2)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def check(resolved: recipe.Recipe, job: Job) -> None:
    """Refuses what a person has to mend, while it costs nothing; warns of a time limit that is short.

    Raises:
        RecipeError: it names no data, or the processes do not divide the batch; names the numbers that do.
        RunError: the folder cannot be written, or holds something else.
    """
    resolved.data.check_named()
    recipe.accumulation(resolved, job.shape.world)
    preflight.check_writable(job.folder)
    if not (job.folder / "recipe.json").exists():
        if job.folder.is_dir() and any(job.folder.iterdir()):
            raise RunError(
                f"{job.folder} holds files but no run (no recipe.json)",
                "a new, an empty or a run's folder",
                "Set DSVLP_RUN to another folder",
            )
        preflight.make_folder(job.folder)
        write_json(
            job.folder / "recipe.json", config.dump(resolved)
        )  # or a failed start could not be noted there
    _check_time(resolved, job)


def _check_time(resolved: recipe.Recipe, job: Job) -> None:
    number = slurm.job_id() or ""
    end = slurm.end_time(number)
    if end is None:
        return
    steps = min(resolved.checkpoint.every_steps, resolved.schedule.steps)
    seconds, source = preflight.step_seconds(resolved, job.shape.world, job.folder)
    left = end - time.time()
    if steps * seconds > left:
        log.warning(
            "a checkpoint comes every %d steps, %.0f s %s; the time limit leaves %.0f s: a kill would lose "
            "them all. Set checkpoint.every_steps to %d or less, or ask for more time",
            steps, steps * seconds, source, left, max(1, int(left / seconds / 4)),
        )  # fmt: skip


def train(arguments: Sequence[str], environment: Mapping[str, str], source: str | None = None) -> int:
    """Trains a recipe, from a run's or an export's weights where `source` names it; returns the exit code."""
    name, *overrides = arguments
    folder = run_folder(name, environment)
    job = Job(folder, environment)
    start = _start_of(source, folder)
    if start is not None:
        overrides.append(f"start={start}")
    resolved = recipe.load(name, overrides)
    check(resolved, job)
    if start == folder / "start" and not start.exists():
        code = job.once(["-m", "dsvlp", "export", str(source), "--out", str(start)])
        if code != 0:
            return code
    if not any((folder / "checkpoints").glob("step-*")):
        exported.start_of(resolved)
    job.stage(resolved)
    try:
        return job.run(["train", name, *overrides, "--run", str(folder)])
    finally:
        job.clean()


def _start_of(source: str | None, folder: Path) -> Path | None:
    """Returns the export that a training starts from: `source`, or where that run's export will lie."""
    if source is None:
        return None
    given = Path(source).resolve()
    if (given / exported.MANIFEST).exists():
        return given
    if not (given / "recipe.json").exists():
        raise RunError(
            f"{given} is neither a run nor an export", "a folder of `dsvlp train` or `dsvlp export`"
        )
    return folder / "start"


def evaluate(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Scores a run on held-out data, retrieval without fine-tuning included; returns the exit code."""
    folder, *options = arguments
    return Job(Path(folder).resolve(), environment).run(["evaluate", folder, *options])


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Returns the run's exit code, after the requeuer has seen it."""
    logs.setup(0)
    verb, *rest = arguments or [""]
    if verb not in ("train", "finetune", "evaluate") or len(rest) < (2 if verb == "finetune" else 1):
        log.error("python -m dsvlp.launch.batch %s", USAGE)
        return requeue.MENDABLE
    try:
        if verb == "evaluate":
            folder, code = Path(rest[0]).resolve(), evaluate(rest, environment)
        elif verb == "finetune":
            folder = run_folder(rest[0], environment)
            code = train([rest[0], *rest[2:]], environment, source=rest[1])
        else:
            folder, code = run_folder(rest[0], environment), train(rest, environment)
    except DsvlpError as error:
        log.error("%s", error)
        return requeue.MENDABLE
    log.info("srun ended with exit code %d", code)
    limit = environment.get("DSVLP_MAX_RESTARTS", str(requeue.MAX_RESTARTS))
    requeue.main(["--run", str(folder), "--exit-code", str(code), "--max-restarts", limit, "--", *rest])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
