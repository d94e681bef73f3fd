"""Hands a job to Slurm through submitit. The only file that knows submitit.

submitit runs a pickled callable in each task, under handlers of its own that pickle, requeue and exit on
USR2 and ignore SIGTERM: a checkpoint that all ranks agree on could not be saved in them. Our callable
holds the signals back and becomes `dsvlp train` by `exec`, where `dsvlp.engine.stop` takes them: of
submitit's handlers nothing is left, and the batch script is the one that requeues.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from dsvlp.engine import stop
from dsvlp.errors import SlurmError
from dsvlp.launch import local, sbatch


class Task:
    """What each task of a job does: goes on with the run that the batch script names."""

    def __call__(self) -> NoReturn:
        """Becomes `dsvlp train --run RUN`; but for the moment before `exec`, no stop signal is lost."""
        stop.hold()
        command = local.own_command(["train", "--run", os.environ[sbatch.RUN]])
        os.execv(command[0], command)


def submit(job: sbatch.Job) -> str:
    """Returns Slurm's number of the submitted job or array.

    Raises:
        SlurmError: sbatch refuses.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    job.folder.chmod(0o700)  # whoever can write a pickle there runs code as the job's owner
    executor = submitit.SlurmExecutor(job.folder, python=sbatch.python(job))
    executor.update_parameters(
        setup=sbatch.setup(job),
        srun_args=sbatch.srun_arguments(job),
        signal_delay_s=job.resources.warning_seconds,
        array_parallelism=job.at_once,
        stderr_to_stdout=True,
        wckey=None,
        additional_parameters=sbatch.options(job),
    )
    try:
        first, *_ = executor.submit_array([Task()] * len(job.runs))
    except (FailedJobError, FailedSubmissionError) as error:
        raise SlurmError(f"sbatch refuses the job: {error}", fix="--dry-run prints the script") from error
    shutil.copyfile(first.paths.submitted_pickle, job.folder / sbatch.TASK)
    number: str = first.job_id.split("_")[0]
    return number
