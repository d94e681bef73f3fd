import json

import pytest

from dsvlp import config, recipe
from dsvlp.engine.run_folder import RunFolder, compare, read_ledger
from dsvlp.errors import RunError


def load(*overrides):
    return recipe.load("tiny_svl", overrides)


def read_recipe(folder):
    return recipe.from_json(json.loads((folder / "recipe.json").read_text()), "recipe.json")


def test_a_new_folder_holds_recipe_and_manifest_and_gives_its_lease_back(tmp_path):
    folder = RunFolder(tmp_path / "run", load())
    assert (tmp_path / "run" / "lease.json").exists()
    folder.reached(0)
    folder.reached(12)
    folder.close("finished", {"train": 1.5})
    assert read_recipe(tmp_path / "run") == load()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["recipe_hash"] == config.digest(load())
    assert manifest["versions"]["torch"] != "absent"
    (line,) = read_ledger(tmp_path / "run")
    assert (line["attempt"], line["from_step"], line["to_step"], line["outcome"]) == (1, 0, 12, "finished")
    assert not (tmp_path / "run" / "lease.json").exists()


def test_a_start_that_failed_before_the_first_checkpoint_blocks_no_other_recipe(tmp_path):
    RunFolder(tmp_path, load()).close("failed: DataError", {})
    RunFolder(tmp_path, load("optimizer.lr=0.01")).close("finished", {})
    assert read_recipe(tmp_path).optimizer.lr == 0.01


def test_another_recipe_is_shown_refused_and_changes_nothing(tmp_path):
    RunFolder(tmp_path, load()).close("finished", {})
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(RunError, match=r"optimizer.lr: 0.001 -> 0.01.*--override"):
        RunFolder(tmp_path, load("optimizer.lr=0.01"))
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_override_accepts_and_stores_the_new_recipe(tmp_path):
    RunFolder(tmp_path, load()).close("finished", {})
    RunFolder(tmp_path, load("optimizer.lr=0.01"), override=True).close("finished", {})
    assert read_recipe(tmp_path).optimizer.lr == 0.01


def test_layout_workers_and_intervals_may_differ_freely():
    free, binding = compare(
        config.dump(load()),
        config.dump(
            load("engine.zero=zero3", "data.workers=1", "batch.micro_pairs=16", "watch.log_every_steps=1")
        ),
    )
    assert len(free) == 4 and binding == []
    for key in ("seed=5", "batch.global_pairs=128", "engine.precision=bf16", "data.open_shards=9"):
        assert compare(config.dump(load()), config.dump(load(key)))[1]


def test_a_folder_with_other_files_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="holds files but no run"):
        RunFolder(tmp_path, load())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_killed_attempt_gets_its_line_from_the_next(tmp_path):
    RunFolder(tmp_path, load()).close("finished", {})
    dead = {
        "job": None,
        "restart": 0,
        "host": __import__("socket").gethostname(),
        "pid": 2**22 + 1,
        "started": "1",
        "renewed": 1_700_000_090.0,
        "notes": {"attempt": 2, "began": "2023-11-14T22:13:20+00:00", "from_step": 5, "to_step": 9},
    }
    (tmp_path / "lease.json").write_text(json.dumps(dead))
    RunFolder(tmp_path, load()).close("stopped", {})
    lines = read_ledger(tmp_path)
    assert [(line["attempt"], line["outcome"]) for line in lines] == [
        (1, "finished"),
        (2, "died"),
        (3, "stopped"),
    ]
    assert lines[1]["seconds"] == 90.0 and lines[1]["to_step"] == 9
