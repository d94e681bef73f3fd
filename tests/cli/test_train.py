"""`dsvlp train` and `dsvlp evaluate`: what is decided before a process trains."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from dsvlp import config, recipe
from dsvlp.cli import evaluate, train
from dsvlp.errors import DsvlpError, RecipeError
from dsvlp.launch import local


@pytest.fixture
def launched(monkeypatch):
    """Records what would be started; no launcher's traces in the environment."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(local, "launch", lambda command, processes: calls.append((command, processes)) or 75)
    return calls


def test_a_run_on_several_processes_starts_itself_again_once_a_rank(launched, tmp_path):
    arguments = ["tiny_svl", "optimizer.lr=1e-4", "--nproc", "2", "--run", str(tmp_path), "--override"]
    result = CliRunner().invoke(train.command, arguments)
    assert result.exit_code == 75
    ((command, processes),) = launched
    assert processes == 2
    assert command[1:] == [
        "-m", "dsvlp", "train", "tiny_svl", "optimizer.lr=1e-4", "--run", str(tmp_path), "--override",
    ]  # fmt: skip


def test_a_number_of_processes_that_does_not_divide_the_batch_starts_nothing(launched):
    result = CliRunner().invoke(train.command, ["tiny_svl", "--nproc", "3"])
    assert isinstance(result.exception, RecipeError)
    assert "one of [1, 2] processes" in str(result.exception)
    assert launched == []


@pytest.mark.parametrize("processes", ["1", "4"])
def test_a_recipe_that_names_no_data_starts_nothing(launched, tmp_path, processes):
    arguments = ["pretrain_svl", "--nproc", processes, "--run", str(tmp_path / "run")]
    result = CliRunner().invoke(train.command, arguments)
    assert isinstance(result.exception, RecipeError)
    assert "data.train is empty" in str(result.exception)
    assert launched == [] and not (tmp_path / "run").exists()


def test_a_wrong_key_starts_nothing(launched):
    result = CliRunner().invoke(train.command, ["tiny_svl", "optimizer.lrr=1", "--nproc", "2"])
    assert "did you mean 'lr'" in str(result.exception)
    assert launched == []


def test_evaluation_starts_itself_again_once_a_rank(launched, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["dsvlp", "evaluate", str(tmp_path), "--nproc", "2"])
    assert CliRunner().invoke(evaluate.command, [str(tmp_path), "--nproc", "2"]).exit_code == 75
    assert launched[0][0][1:4] == ["-m", "dsvlp", "evaluate"]


def test_help_needs_no_torch():
    code = "import sys; import dsvlp.cli.train, dsvlp.cli.evaluate; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], timeout=60, env=os.environ, check=False).returncode == 0
    )


def test_without_a_recipe_the_runs_own_is_taken(launched, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(config.dump(recipe.load("tiny_svl", ["seed=7"]))))
    result = CliRunner().invoke(train.command, ["--run", str(tmp_path), "--nproc", "2"])
    assert result.exit_code == 75, result.exception
    assert launched[0][0][1:] == ["-m", "dsvlp", "train", "--run", str(tmp_path)]
    refused = CliRunner().invoke(train.command, ["--run", str(tmp_path), "--nproc", "3"])
    assert "one of [1, 2] processes" in str(refused.exception)


def test_with_neither_a_recipe_nor_a_run_nothing_starts(launched, tmp_path):
    for arguments, said in (([], "neither a recipe nor a run"), (["--run", str(tmp_path)], "does not exist")):
        result = CliRunner().invoke(train.command, arguments)
        assert isinstance(result.exception, DsvlpError) and said in str(result.exception)
    assert launched == []
