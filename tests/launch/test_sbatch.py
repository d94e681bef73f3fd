"""The batch script: what it holds, and that bash and submitit agree with it."""

import dataclasses
import subprocess
from pathlib import Path

import pytest

from dsvlp.errors import RunError
from dsvlp.launch import sbatch
from dsvlp.launch.sbatch import Job, Resources

RESOURCES = Resources(nodes=2, gpus=4, hours=1.5, partition="low", account="lab", options={"mem": "200G"})


def job(folder: Path, *, members: int = 1, **changes) -> Job:
    runs = tuple(folder / f"run of {index}" for index in range(members))
    plain = Job("name", runs, folder / "code", folder / "slurm", RESOURCES, max_restarts=3, python="python3")
    return dataclasses.replace(plain, **changes)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#SBATCH")]


def test_one_task_a_gpu_on_all_nodes_with_the_limit_in_minutes(tmp_path):
    found = lines(sbatch.text(job(tmp_path)))
    for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=90", "--mem=200G"):
        assert f"#SBATCH {line}" in found
    assert not any("--array" in line for line in found)


def test_without_gpus_there_is_one_process_a_node_and_none_is_asked_for(tmp_path):
    found = "\n".join(lines(sbatch.text(job(tmp_path, resources=Resources(nodes=3, gpus=0)))))
    assert "--ntasks-per-node=1" in found and "--gpus" not in found
    assert Resources(nodes=3, gpus=0).world == 3


def test_an_array_has_a_task_for_each_member_and_so_many_at_once(tmp_path):
    text = sbatch.text(job(tmp_path, members=5, at_once=2))
    assert "#SBATCH --array=0-4%2" in text
    assert "%A_%a" in text and "%j" not in text


def bash(text: str, **environment: str) -> str:
    """Returns what the lines before srun make of the environment."""
    setup = text.split("# setup\n")[1].split("trap :")[0]
    shown = 'echo "$DSVLP_RUN"; echo "$PYTHONPATH"; echo "$task"'
    told = subprocess.run(
        ["bash", "-c", setup + shown], capture_output=True, text=True, timeout=20, check=True, env=environment
    )
    return told.stdout


def test_each_member_of_an_array_goes_on_with_its_own_run(tmp_path):
    text = sbatch.text(job(tmp_path, members=3))
    array = {"SLURM_JOB_ID": "41", "SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "2"}
    run, path, task = bash(text, **array).splitlines()
    assert run == f"{tmp_path}/run of 2"
    assert path == f"{tmp_path}/code"
    assert task == f"{tmp_path}/slurm/40_2_submitted.pkl"


def test_the_copied_code_comes_before_what_the_user_has_in_the_path(tmp_path):
    _, path, task = bash(sbatch.text(job(tmp_path)), SLURM_JOB_ID="7", PYTHONPATH="/other").splitlines()
    assert path == f"{tmp_path}/code:/other"
    assert task == f"{tmp_path}/slurm/7_submitted.pkl"


def test_a_job_submitted_anew_finds_its_task_under_its_new_number(tmp_path):
    one = job(tmp_path)
    one.folder.mkdir()
    (one.folder / sbatch.TASK).write_text("pickle")
    bash(sbatch.text(one), SLURM_JOB_ID="99")
    assert (one.folder / "99_submitted.pkl").read_text() == "pickle"
    (one.folder / "98_submitted.pkl").write_text("its own")
    bash(sbatch.text(one), SLURM_JOB_ID="98")
    assert (one.folder / "98_submitted.pkl").read_text() == "its own"


@pytest.mark.parametrize("code", [0, 75, 137])
def test_the_requeuer_learns_with_what_srun_ended_and_the_script_ends_so_too(tmp_path, code):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\n[ "$3" = submitit.core._submit ] || echo "$@" >> {tmp_path}/asked\n')
    (tmp_path / "srun").write_text(f"#!/bin/bash\nexit {code}\n")
    for path in (python, tmp_path / "srun"):
        path.chmod(0o755)
    script = sbatch.text(job(tmp_path, python=str(python)))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "5"}
    done = subprocess.run(["bash", "-c", script], env=environment, timeout=20)
    assert done.returncode == code
    asked = (tmp_path / "asked").read_text().splitlines()
    run = f"{tmp_path}/run of 0"
    assert asked == [f"-m dsvlp.launch.requeue --run {run} --exit-code {code} --max-restarts 3"]


@pytest.mark.parametrize(("answer", "starts"), [(0, True), (sbatch.OVER, False), (1, True)])
def test_a_member_starts_unless_its_sweeps_budget_is_spent(tmp_path, answer, starts):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\n[ "$2" = dsvlp.launch.budget ] && exit {answer}\nexit 0\n')
    (tmp_path / "srun").write_text(f"#!/bin/bash\ntouch {tmp_path}/started\n")
    for path in (python, tmp_path / "srun"):
        path.chmod(0o755)
    script = sbatch.text(job(tmp_path, python=str(python), sweep=tmp_path))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "5"}
    assert subprocess.run(["bash", "-c", script], env=environment, timeout=20).returncode == 0
    assert (tmp_path / "started").exists() == starts


def test_a_signal_to_the_batch_shell_does_not_end_it_before_srun(tmp_path):
    (tmp_path / "srun").write_text("#!/bin/bash\nkill -TERM $PPID; kill -USR2 $PPID; sleep 0.3; exit 75\n")
    (tmp_path / "python").write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/asked\n')
    for name in ("python", "srun"):
        (tmp_path / name).chmod(0o755)
    script = sbatch.text(job(tmp_path, python=str(tmp_path / "python")))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "5"}
    assert subprocess.run(["bash", "-c", script], env=environment, timeout=20).returncode == 75
    assert "--exit-code 75" in (tmp_path / "asked").read_text()


@pytest.mark.parametrize(("hours", "minutes", "warning"), [(1 / 60, 1, 10), (0.101, 7, 42), (24, 1440, 300)])
def test_slurm_warns_in_time_for_a_checkpoint_but_not_for_half_of_a_short_job(hours, minutes, warning):
    resources = Resources(hours=hours)
    assert (resources.minutes, resources.warning_seconds) == (minutes, warning)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"nodes": 0}, "nodes = 0.*at least 1"),
        ({"gpus": -1}, "gpus = -1"),
        ({"hours": 0.001}, "at least a minute"),
        ({"hours": float("inf")}, "at least a minute"),
        ({"options": {"gres": "gpu:8"}}, "--gres.*Use gpus"),
        ({"options": {"ntasks_per_node": "8"}}, "--ntasks_per_node.*Use gpus"),
    ],
)
def test_senseless_resources_are_refused_when_they_are_named(wrong, said):
    with pytest.raises(RunError, match=said):
        Resources(**wrong)


@pytest.mark.parametrize("kind", ["apptainer", "enroot", "pyxis"])
def test_in_a_container_each_task_sees_code_pickles_and_runs_and_the_requeuer_stays_outside(tmp_path, kind):
    one = job(tmp_path, resources=dataclasses.replace(RESOURCES, container=f"{kind}:/images/it.sif"))
    *_, last = sbatch.text(one).rstrip().splitlines()
    assert last.startswith("srun ") and "/images/it.sif" in last
    for path in (one.code, one.folder, *one.runs):
        assert f"{path}:{path}" in last
    assert "python3 -u -m submitit.core._submit" in last
    if kind == "enroot":
        assert (
            "--env DSVLP_RUN" in last and "--env SUBMITIT_EXECUTOR" in last and "--env SLURM_PROCID" in last
        )
    assert f"{one.python} -m dsvlp.launch.requeue" in sbatch.text(one)
