"""`dsvlp bench step`: what is decided before a process measures, and what is printed after."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from dsvlp.cli import bench_scaling, bench_step, bench_turns
from dsvlp.errors import RecipeError, RunError
from dsvlp.launch import local


def result(**medians: float) -> dict:
    return {
        "format": 2,
        "bench": "step",
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
        "hardware": {"device": "CPU", "cores": 2, "load_average": 0.5},
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
    monkeypatch.setattr(
        local, "launch", lambda command, processes, *_: calls.append((command, processes)) or 0
    )
    return calls


def test_several_processes_are_started_with_the_same_settings(launched, tmp_path):
    out = str(tmp_path / "out.json")
    arguments = ["tiny_svl", "optimizer.lr=1e-4", "--nproc", "2", "--steps", "4", "--parts", "--json", out]
    assert CliRunner().invoke(bench_step.command, arguments).exit_code == 0
    ((command, processes),) = launched
    assert processes == 2
    assert command[1:] == [
        "-m", "dsvlp", "bench", "step", "tiny_svl", "optimizer.lr=1e-4",
        "--steps", "4", "--warmup", "3", "--repeats", "5", "--parts", "--json", out,
    ]  # fmt: skip


def test_processes_that_do_not_divide_the_batch_start_nothing(launched):
    done = CliRunner().invoke(bench_step.command, ["tiny_svl", "--nproc", "3"])
    assert isinstance(done.exception, RecipeError) and not launched


def test_a_variant_is_the_recipe_with_further_overrides_or_another_recipe_under_the_same():
    base = ("batch.micro_pairs=2",)
    for text, expected in {
        "engine.share_prefixes=false": ("fiber", "batch.micro_pairs=2", "engine.share_prefixes=false"),
        "meter optimizer.lr=1e-4": ("meter", "batch.micro_pairs=2", "optimizer.lr=1e-4"),
        "'data.train=[]'": ("fiber", "batch.micro_pairs=2", "data.train=[]"),
    }.items():
        assert bench_turns.variant("fiber", base, text) == expected


def test_variants_take_turns_and_stand_side_by_side(launched, monkeypatch, tmp_path):
    rates = iter([4.0, 2.0, 6.0, 2.5, 5.0, 1.5])
    turns = []

    def launch(command, processes, environment):
        turns.append(("engine.precision=bf16" in command, processes, command[command.index("--repeats") + 1]))
        path = command[command.index("--json") + 1]
        Path(path).write_text(json.dumps(result(pairs=next(rates))))
        return 0

    monkeypatch.setattr(local, "launch", launch)
    out = tmp_path / "out.json"
    options = ["--nproc", "2", "--repeats", "3", "--no-update", "--json", str(out)]
    done = CliRunner().invoke(
        bench_step.command, ["tiny_svl", "--against", "engine.precision=bf16", *options]
    )
    assert done.exit_code == 0, done.output
    assert turns == [(False, 2, "1"), (True, 2, "1")] * 3
    saved = json.loads(out.read_text())["variants"]
    rows = {name: one["figures"][0] for name, one in saved.items()}
    assert rows["tiny_svl"]["values"] == [4.0, 6.0, 5.0]
    assert rows["tiny_svl engine.precision=bf16"]["median"] == 2.0
    (line,) = (line for line in done.output.splitlines() if line.startswith("pairs"))
    assert line.split() == ["pairs", "ms", "5", "4", "to", "6", "2", "1.5", "to", "2.5", "0.400"]


def test_a_variant_that_fails_ends_the_comparison_with_its_code(launched, monkeypatch):
    monkeypatch.setattr(local, "launch", lambda *_: 3)
    done = CliRunner().invoke(bench_step.command, ["tiny_svl", "--against", "batch.micro_pairs=16"])
    assert done.exit_code == 3


def test_a_variant_that_is_no_recipe_starts_nothing(launched):
    for text in ("tiny_nothing", "engine.precision=fp8"):
        done = CliRunner().invoke(bench_step.command, ["tiny_svl", "--against", text])
        assert isinstance(done.exception, RecipeError) and not launched


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 3}', '{"format": 2, "bench": "step", "figures": []}']
)
def test_a_file_that_holds_no_result_is_named_before_anything_runs(launched, tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    done = CliRunner().invoke(bench_step.command, ["tiny_svl", "--nproc", "2", "--compare", str(path)])
    assert isinstance(done.exception, RunError) and not launched
    assert str(path) in str(done.exception) and "--json" in str(done.exception)


def test_scaling_takes_turns_over_numbers_of_processes_with_the_same_threads(launched, monkeypatch, tmp_path):
    turns = []

    def launch(command, processes, environment):
        turns.append((command[6:7] == ["batch.global_pairs=128"], processes, environment["OMP_NUM_THREADS"]))
        step = {"pairs": 10.0 * processes**0.5, "whole step": 4.0, "part/communication": float(processes)}
        found = result(**step, **{"part/the whole step, its parts marked": 5.0})
        Path(command[command.index("--json") + 1]).write_text(json.dumps(found))
        return 0

    monkeypatch.setattr(local, "launch", launch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "out.json"
    options = ["--nproc", "2", "--repeats", "2", "--json", str(out)]
    done = CliRunner().invoke(bench_scaling.command, ["tiny_svl", *options])
    assert done.exit_code == 0, done.output
    assert turns == [(False, 1, "1"), (False, 2, "1"), (True, 2, "1")] * 2
    rows = {figure["name"]: figure for figure in json.loads(out.read_text())["figures"]}
    assert rows["same global batch, 1 process: efficiency"]["values"] == [100.0, 100.0]
    assert rows["same batch a process, 2 processes: efficiency"]["median"] == pytest.approx(100 / 2**0.5)
    assert rows["same global batch, 2 processes: communication, share of the step"]["median"] == 40.0
