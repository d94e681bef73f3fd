"""`dsvlp bench step`: what is decided before a process measures, and what is printed after."""

import json

import pytest
from click.testing import CliRunner

from dsvlp.cli import bench_step
from dsvlp.errors import RecipeError, RunError
from dsvlp.launch import local


def result(**medians: float) -> dict:
    return {
        "format": 1,
        "figures": [
            {
                "name": name,
                "unit": "ms",
                "values": [value],
                "median": value,
                "lowest": value,
                "highest": value,
            }
            for name, value in medians.items()
        ],
        "hardware": {"device": "CPU"},
        "settings": {"threads": 1},
        "versions": {"torch": "2"},
        "recipe": {"batch": {"micro_pairs": 4}},
    }


@pytest.fixture
def launched(monkeypatch):
    """Records what would be started; no launcher's traces in the environment."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(local, "launch", lambda command, processes: calls.append((command, processes)) or 0)
    return calls


def test_several_processes_are_started_with_the_same_settings(launched, tmp_path):
    out = str(tmp_path / "out.json")
    arguments = ["tiny_svl", "optimizer.lr=1e-4", "--nproc", "2", "--steps", "4", "--json", out]
    assert CliRunner().invoke(bench_step.command, arguments).exit_code == 0
    ((command, processes),) = launched
    assert processes == 2
    assert command[1:] == [
        "-m", "dsvlp", "bench", "step", "tiny_svl", "optimizer.lr=1e-4",
        "--steps", "4", "--warmup", "3", "--repeats", "5", "--json", out,
    ]  # fmt: skip


def test_processes_that_do_not_divide_the_batch_start_nothing(launched):
    done = CliRunner().invoke(bench_step.command, ["tiny_svl", "--nproc", "3"])
    assert isinstance(done.exception, RecipeError) and not launched


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "figures": []}'])
def test_a_file_that_holds_no_result_is_named_before_anything_runs(launched, tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    done = CliRunner().invoke(bench_step.command, ["tiny_svl", "--nproc", "2", "--compare", str(path)])
    assert isinstance(done.exception, RunError) and not launched
    assert str(path) in str(done.exception) and "--json" in str(done.exception)


def test_the_ratio_to_a_saved_result_stands_beside_and_differences_are_named(tmp_path):
    path = tmp_path / "saved.json"
    path.write_text(json.dumps(result(forward=100.0, idle=0.0, gone=5.0)))
    now = result(forward=150.0, idle=3.0, new=1.0)
    now["recipe"]["batch"]["micro_pairs"] = 8
    lines = bench_step.show(now, bench_step.read(path))
    cells = {line.split()[0]: line.split()[1:] for line in lines[0].splitlines()[2:]}
    assert cells["forward"] == ["ms", "150", "150", "150", "100", "1.500"]
    assert cells["idle"] == ["ms", "3", "3", "3", "0"]  # no ratio to nothing
    assert cells["new"] == ["ms", "1", "1", "1"]
    assert lines[-1] == "differs from the saved one in: batch.micro_pairs: 4 -> 8"


def test_without_a_saved_result_there_is_no_such_column():
    lines = bench_step.show(result(forward=150.0), None)
    assert "ratio" not in lines[0] and "hardware: device CPU" in lines
