from pathlib import Path

import pytest

from dsvlp.errors import RunError
from dsvlp.launch.container import wrap

COMMAND = ["python3", "-m", "dsvlp", "train", "tiny_svl", "--run", "/runs/a b"]
MOUNTS = [Path("/runs/a b"), Path("/data"), Path("/data/coco")]
HOME = Path("/home/me")


def wrapped(container):
    return wrap(container, COMMAND, MOUNTS, HOME, ["SLURM_PROCID", "HOME", "MASTER_PORT", "NCCL_DEBUG"])


def test_apptainer_binds_each_folder_once_under_its_own_path():
    options, command = wrapped("apptainer:docker://nvcr.io/x:1")
    assert options == []
    assert command == [
        *["apptainer", "exec", "--nv", "--bind", "/data:/data,/home/me:/home/me,/runs/a b:/runs/a b"],
        *["--pwd", "/home/me", "docker://nvcr.io/x:1", *COMMAND],
    ]


def test_pyxis_leaves_the_command_as_it_is_and_tells_srun():
    options, command = wrapped("pyxis:/images/x.sqsh")
    assert command == COMMAND
    assert options == [
        "--container-image=/images/x.sqsh",
        "--container-mounts=/data:/data,/home/me:/home/me,/runs/a b:/runs/a b",
        "--container-workdir=/home/me",
    ]


def test_enroot_is_told_the_variables_of_a_rank_and_no_other():
    _, command = wrapped("enroot:/images/x.sqsh")
    told = [command[n + 1] for n, part in enumerate(command) if part == "--env"]
    assert told == ["MASTER_PORT", "NCCL_DEBUG", "SLURM_PROCID"]
    assert command[:2] == ["enroot", "start"] and command[-len(COMMAND) :] == COMMAND


@pytest.mark.parametrize("container", ["x.sif", "docker:x", "apptainer:", "apptainer"])
def test_another_word_is_refused_with_an_example(container):
    with pytest.raises(RunError, match=r"apptainer, enroot, pyxis.*apptainer:/images/dsvlp.sif"):
        wrapped(container)
