"""`dsvlp submit` and `dsvlp sweep` on a login node."""

import json
import resource
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from dsvlp.cli import submit, sweep
from dsvlp.launch import sweep as sweeps

BASE = ["tiny_svl", "--gpus", "2", "--hours", "1"]


def test_a_dry_run_prints_the_script_and_leaves_nothing(slurm, tmp_path):
    result = CliRunner().invoke(submit.command, [*BASE, "--run", str(tmp_path / "run"), "--dry-run"])
    assert result.exit_code == 0, result.exception
    assert result.stdout.startswith("#!/bin/bash\n") and "#SBATCH --gpus-per-node=2" in result.stdout
    assert not (tmp_path / "run").exists() and not slurm.scripts()


def test_what_is_submitted_is_what_a_dry_run_prints(slurm, tmp_path):
    arguments = [*BASE, "--sbatch", "mem=9G", "--sbatch", "--constraint=h200", "--run", str(tmp_path / "run")]
    printed = CliRunner().invoke(submit.command, [*arguments, "--dry-run"]).stdout
    result = CliRunner().invoke(submit.command, [*arguments, "optimizer.lr=0.5"])
    assert result.exit_code == 0, result.exception
    assert slurm.scripts() == [printed]
    assert "#SBATCH --constraint=h200" in printed
    assert result.stdout.startswith(f"job 12, run folder {tmp_path}/run")
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["optimizer"]["lr"] == 0.5


def test_a_refused_job_leaves_no_folder(slurm, tmp_path):
    for wrong in (["--nodes", "9"], ["--partition", "no"], ["--account", "no"], ["optimizer.lrr=1"]):
        result = CliRunner().invoke(submit.command, [*BASE, *wrong, "--run", str(tmp_path / "run")])
        assert result.exit_code != 0
    assert not (tmp_path / "run").exists() and not slurm.scripts()


def test_a_dry_run_needs_no_slurm_and_says_what_it_did_not_check(monkeypatch, tmp_path):
    (tmp_path / "git").symlink_to(shutil.which("git"))
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(submit.command, [*BASE, "--run", str(tmp_path / "run"), "--dry-run"])
    assert result.exit_code == 0, result.exception
    assert "are not checked" in result.output


def test_a_login_nodes_work_needs_no_torch_and_less_than_a_second(slurm, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"  # any import of torch now raises
        "from dsvlp.cli.main import main\n"
        f"main(['submit', *{BASE!r}, '--run', {str(tmp_path / 'run')!r}, '--dry-run'])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Of the processor: the wall's seconds depend on who else uses the machine.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


@pytest.mark.parametrize("verb", ["status", "retry"])
def test_a_folder_without_a_sweep_is_one_sentence(slurm, tmp_path, verb):
    result = CliRunner().invoke(sweep.command, [verb, str(tmp_path)])
    assert "sweep.json does not exist" in str(result.exception)


def test_the_status_of_a_sweep_is_a_table_or_json(slurm, tmp_path):
    sweeps.submit("tiny_svl", [{"seed": 1}, {"seed": 2}], tmp_path / "s", sweeps.Resources(hours=1))
    slurm.says("squeue", "12_0|RUNNING\n12_1|PENDING\n")
    table = CliRunner().invoke(sweep.command, ["status", str(tmp_path / "s")]).stdout
    assert "running" in table and "waiting" in table and "0 GPU-hours" in table
    told = json.loads(CliRunner().invoke(sweep.command, ["status", str(tmp_path / "s"), "--json"]).stdout)
    assert [each["state"] for each in told] == ["running", "waiting"]
