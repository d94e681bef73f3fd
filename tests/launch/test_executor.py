"""What submitit really submits, with stand-ins for Slurm's commands."""

import dataclasses
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dsvlp.errors import SlurmError
from dsvlp.launch import executor, sbatch
from dsvlp.launch.sbatch import Job, Resources

ROOT = Path(__file__).parents[2]


def job(folder: Path, members: int) -> Job:
    runs = tuple(folder / f"run {index}" for index in range(members))
    resources = Resources(nodes=2, gpus=4, hours=3, partition="low", qos="long", options={"mem": "9G"})
    return Job("name", runs, folder / "code", folder / "it's slurm", resources, 3, at_once=2)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("container", [None, "apptainer:i.sif", "pyxis:i.sqsh", "enroot:i.sqsh"])
def test_the_printed_script_is_what_submitit_submits(slurm, tmp_path, members, container):
    one = job(tmp_path, members)
    one = dataclasses.replace(one, resources=dataclasses.replace(one.resources, container=container))
    assert executor.submit(one) == "12"
    assert slurm.scripts() == [sbatch.text(one)]


def test_the_folder_of_pickles_is_private_and_each_task_is_found_again(slurm, tmp_path):
    one = job(tmp_path, 3)
    executor.submit(one)
    assert stat.S_IMODE(one.folder.stat().st_mode) == 0o700
    pickles = {path.name for path in one.folder.glob("*.pkl")}
    assert pickles == {"12_0_submitted.pkl", "12_1_submitted.pkl", "12_2_submitted.pkl", sbatch.TASK}
    assert len({(one.folder / name).read_bytes() for name in pickles}) == 1  # a task holds no state


def test_what_sbatch_refuses_is_told_in_its_words(slurm, tmp_path):
    slurm.fails("sbatch", "sbatch: error: Invalid qos specification")
    with pytest.raises(SlurmError, match="Invalid qos specification"):
        executor.submit(job(tmp_path, 1))


def test_a_task_becomes_dsvlp_train_with_the_signals_held_back(slurm, tmp_path):
    """Run as srun runs it: submitit's handlers are gone, a signal that came early is not lost."""
    one = job(tmp_path, 1)
    executor.submit(one)
    package = tmp_path / "code" / "dsvlp"
    package.mkdir(parents=True)
    told = (
        "import os, signal, sys\n"
        "names = ('SIGTERM', 'SIGUSR2', 'SIGCONT')\n"
        "print(sys.argv[1:], [signal.getsignal(getattr(signal, n)) == signal.SIG_DFL for n in names],\n"
        "      sorted(s.name for s in signal.sigpending()))\n"
    )
    (package / "__main__.py").write_text(told)
    for path in ROOT.glob("dsvlp/*"):
        if path.name != "__main__.py":
            (package / path.name).symlink_to(path)
    early = (
        "import os, signal\n"
        "from dsvlp.launch import executor\n"
        "from submitit.core import _submit, submission\n"
        "become = os.execv\n"
        "os.execv = lambda *a: (os.kill(os.getpid(), signal.SIGTERM), become(*a))\n"
        f"submission.process_job({str(one.folder)!r})\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "code"),
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "12",
        "SLURM_PROCID": "0",
        "DSVLP_RUN": "/runs/a",
        "OMP_NUM_THREADS": "1",  # a thread of NumPy's that began before could take the signal
    }
    done = subprocess.run(
        [sys.executable, "-c", early],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        f"['train', '--run', '/runs/a'] [True, True, True] ['{signal.SIGTERM.name}']"
    )
