import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dsvlp import recipe
from dsvlp.errors import RunError
from dsvlp.launch import batch
from dsvlp.launch.batch import Job, Shape, run_folder, shape

ROOT = Path(__file__).parents[2]
TWO_BY_FOUR = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_ON_NODE": "32",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Shape(1, 1, 1)),
        (TWO_BY_FOUR, Shape(2, 4, 8)),
        ({**TWO_BY_FOUR, "SLURM_NTASKS_PER_NODE": "2"}, Shape(2, 2, 16)),
        ({"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "6", "SLURM_CPUS_ON_NODE": "3"}, Shape(2, 3, 1)),
        (
            {"SLURM_JOB_NUM_NODES": "1000", "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_ON_NODE": "96"},
            Shape(1000, 8, 12),
        ),
    ],
)
def test_a_task_for_each_gpu_else_as_many_as_were_asked_for(environment, expected):
    assert shape(environment) == expected


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"SLURM_JOB_ID": "7"}, "tiny_svl-7"),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "3"}, "tiny_svl-7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "tiny_svl-7_2"),
    ],
)
def test_the_runs_folder_is_the_same_for_each_restart_and_another_for_each_member(environment, name):
    assert run_folder("recipes/tiny_svl.toml", environment) == Path.cwd() / "runs" / name
    assert run_folder("tiny_svl", {**environment, "DSVLP_RUN": "/x/y"}) == Path("/x/y")


def test_outside_of_a_job_the_reason_and_the_way_are_told():
    with pytest.raises(RunError, match=r"no Slurm job.*sbatch slurm/pretrain.sh"):
        run_folder("tiny_svl", {})


def test_one_srun_starts_all_ranks_on_all_nodes(tmp_path):
    command = Job(tmp_path, TWO_BY_FOUR).command(["-m", "dsvlp"], 4, 2)
    assert command[:6] == [
        *["srun", "--nodes=2", "--ntasks=8", "--ntasks-per-node=4"],
        *["--cpus-per-task=8", f"--wait={batch.GRACE_SECONDS}"],
    ]
    assert command[6:] == [sys.executable, "-m", "dsvlp"]


def test_in_a_container_the_run_and_the_code_are_seen(tmp_path):
    environment = {**TWO_BY_FOUR, "DSVLP_CONTAINER": "apptainer:x.sif", "PYTHONPATH": "/code"}
    command = Job(tmp_path / "run", environment).command(["-m", "dsvlp"], 4, 2)
    assert command[6:9] == ["apptainer", "exec", "--nv"] and command[-4:] == [
        "x.sif",
        "python3",
        "-m",
        "dsvlp",
    ]
    bound = command[command.index("--bind") + 1].split(",")
    assert {f"{tmp_path}/run:{tmp_path}/run", "/code:/code"} <= set(bound)


def test_in_a_container_the_recipes_data_are_seen_where_they_are(tmp_path):
    (tmp_path / "x.beton").mkdir()
    one = Job(tmp_path / "run", {**TWO_BY_FOUR, "DSVLP_CONTAINER": "pyxis:x.sqsh"})
    one.stage(
        recipe.load("tiny_svl", [f"data.validation={tmp_path}/x.beton", 'data.train=[{path="/absent"}]'])
    )
    (mounts,) = [part for part in one.command([], 1, 1) if part.startswith("--container-mounts=")]
    assert f"{tmp_path}/x.beton:{tmp_path}/x.beton" in mounts and "/absent" not in mounts


@pytest.fixture
def srun(tmp_path, monkeypatch):
    """Returns a function that puts an srun, a shell script, first in the path; it notes its arguments."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def write(body: str) -> Path:
        (tmp_path / "srun").write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/calls\n{body}\n')
        (tmp_path / "srun").chmod(0o755)
        return tmp_path / "calls"

    return write


@pytest.fixture(autouse=True)
def no_limit(monkeypatch):
    """Slurm knows of no time limit, unless a test says so."""
    monkeypatch.setattr(batch.slurm, "end_time", lambda job: None)


def job(tmp_path, **environment):
    return Job(tmp_path / "run", {**os.environ, **TWO_BY_FOUR, **environment})


def test_the_exit_code_is_sruns_and_a_killed_srun_has_its_signals(tmp_path, srun):
    srun("exit 75")
    assert job(tmp_path).run(["train"]) == 75
    srun("kill -9 $$")
    assert job(tmp_path).run(["train"]) == 128 + 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_stop_for_the_batch_script_alone_reaches_the_ranks_as_usr2(tmp_path, srun, number):
    srun(f"trap 'exit 75' USR2; touch {tmp_path}/up; for i in $(seq 200); do sleep 0.05; done")

    def tell() -> None:
        deadline = time.monotonic() + 20
        while not (tmp_path / "up").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    teller = threading.Thread(target=tell)
    teller.start()
    assert job(tmp_path).run(["train"]) == 75
    teller.join()


def test_data_sets_are_staged_once_a_node_and_removed(tmp_path, srun):
    calls = srun('[ "$DSVLP_STAGED" = /local/dsvlp-7 ] || exit 9')
    resolved = recipe.load(
        "tiny_svl",
        [
            'data.train=[{path="/data/a.beton", features="/data/a.features"}]',
            "data.validation=/data/b.beton",
            "data.validation_features=/data/b.features",
        ],
    )
    one = job(tmp_path, DSVLP_STAGE="/local")
    one.stage(resolved)
    assert one.run(["train"]) == 0
    one.clean()
    copied, trained, removed = calls.read_text().splitlines()
    for line in (copied, removed):
        assert "--nodes=2 --ntasks=2 --ntasks-per-node=1" in line
    sources = "/data/a.beton /data/a.features /data/b.beton /data/b.features"
    assert copied.endswith(f"dsvlp.launch.staging copy /local/dsvlp-7 {sources}")
    assert removed.endswith("dsvlp.launch.staging remove /local/dsvlp-7") and "--ntasks=8" in trained


def test_nothing_is_staged_unless_asked(tmp_path, srun):
    calls = srun("")
    one = job(tmp_path)
    one.stage(recipe.load("tiny_svl", ['data.train=[{path="/data/a.beton"}]']))
    one.clean()
    assert not calls.exists()


@pytest.mark.parametrize("name", ["pretrain", "finetune", "evaluate"])
def test_the_scripts_are_bash_and_name_every_variable_that_is_read(name):
    path = ROOT / "slurm" / f"{name}.sh"
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=30)
    text = path.read_text()
    assert "#SBATCH --requeue" in text and "#SBATCH --open-mode=append" in text
    if name == "pretrain":
        for variable in ("RUN", "PYTHON", "CONTAINER", "STAGE", "MAX_RESTARTS"):
            assert f"#   DSVLP_{variable} " in text


def test_what_starts_a_job_needs_no_torch():
    modules = "batch, container, requeue, staging"
    code = f"import sys; sys.modules['torch'] = None; from dsvlp.launch import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


def test_a_time_limit_shorter_than_a_checkpoint_interval_is_warned_of_with_what_would_fit(
    tmp_path, monkeypatch, caplog
):
    resolved = recipe.load("tiny_svl", ["checkpoint.every_steps=400", "batch.micro_pairs=8"])
    monkeypatch.setattr(batch.slurm, "end_time", lambda job: time.time() + 600)
    monkeypatch.setattr(batch.preflight, "step_seconds", lambda *of: (1.0, "at the run's last speed"))
    batch.check(resolved, job(tmp_path))
    assert not caplog.text
    monkeypatch.setattr(batch.preflight, "step_seconds", lambda *of: (2.0, "at the run's last speed"))
    batch.check(resolved, job(tmp_path))
    assert "every 400 steps, 800 s at the run's last speed" in caplog.text
    assert "Set checkpoint.every_steps to 7" in caplog.text  # a quarter of the 300 steps that fit


def test_a_full_disk_is_told_before_any_rank_starts(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dsvlp.files.os.replace", full)
    with pytest.raises(RunError, match=r"No space left on device.*Check space"):
        batch.check(recipe.load("tiny_svl", ["batch.micro_pairs=8"]), job(tmp_path))


def test_a_folder_with_other_files_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"no recipe.json.*DSVLP_RUN"):
        batch.check(recipe.load("tiny_svl", ["batch.micro_pairs=8"]), job(tmp_path))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]
