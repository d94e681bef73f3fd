import errno
import json
import socket

import pytest

from dsvlp import config, recipe
from dsvlp.accounting import ledger
from dsvlp.accounting.ledger import read_ledger
from dsvlp.engine.run_folder import RunFolder, compare
from dsvlp.errors import RunError


def load(*overrides):
    return recipe.load("tiny_svl", overrides)


def read_recipe(folder):
    return recipe.from_json(json.loads((folder / "recipe.json").read_text()), "recipe.json")


def test_a_new_folder_holds_recipe_and_manifest_and_gives_its_lease_back(tmp_path):
    folder = RunFolder(tmp_path / "run", load())
    assert (tmp_path / "run" / "lease.json").exists()
    folder.reached(0, {})
    folder.reached(12, {"train": 1.0})
    folder.note(flop_per_sample=1e9, joules=None)
    folder.close("finished", {"train": 1.5})
    assert read_recipe(tmp_path / "run") == load()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["recipe_hash"] == config.digest(load())
    assert manifest["versions"]["torch"] != "absent"
    (attempt,) = read_ledger(tmp_path / "run")
    assert (attempt.attempt, attempt.from_step, attempt.to_step, attempt.outcome) == (1, 0, 12, "finished")
    assert attempt.samples == 12 * load().batch.global_pairs and attempt.model_flops == attempt.samples * 1e9
    assert attempt.seconds == {"train": 1.5} and attempt.user and attempt.host
    assert not (tmp_path / "run" / "lease.json").exists()


def test_a_start_that_failed_before_the_first_checkpoint_blocks_no_other_recipe(tmp_path):
    RunFolder(tmp_path, load()).close("failed", {}, ValueError("no"))
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


def lease_of_the_dead(folder, **notes):
    dead = {
        "job": None,
        "restart": 0,
        "host": socket.gethostname(),
        "pid": 2**22 + 1,
        "started": "1",
        "renewed": 1_700_000_090.0,
        "notes": {"began": 1_700_000_000.0, "from_step": 5, "to_step": 9, **notes},
    }
    (folder / "lease.json").write_text(json.dumps(dead))


def test_a_killed_attempt_gets_its_line_from_the_next(tmp_path):
    RunFolder(tmp_path, load()).close("finished", {})
    lease_of_the_dead(tmp_path, attempt=2, seconds={"train": 80.0})
    folder = RunFolder(tmp_path, load())
    assert (folder.attempt, folder.made) == (3, 9)
    folder.close("stopped", {})
    attempts = read_ledger(tmp_path)
    assert [(each.attempt, each.outcome) for each in attempts] == [
        (1, "finished"),
        (2, "died"),
        (3, "stopped"),
    ]
    assert (attempts[1].wall_seconds, attempts[1].to_step, attempts[1].seconds) == (90.0, 9, {"train": 80.0})


def test_steps_that_an_earlier_attempt_had_made_are_redone_and_counted_apart(tmp_path):
    RunFolder(tmp_path, load()).close("stopped", {})
    lease_of_the_dead(tmp_path, attempt=2)
    folder, pairs = RunFolder(tmp_path, load()), load().batch.global_pairs
    for step in (7, 8, 9, 10, 11):
        folder.reached(step, {})
    folder.close("finished", {})
    attempt = read_ledger(tmp_path)[-1]
    assert (attempt.samples, attempt.redone_samples) == (4 * pairs, 2 * pairs)


def test_the_end_of_an_attempt_says_why_it_failed(tmp_path):
    folder = RunFolder(tmp_path, load())
    folder.reached(3, {})
    folder.close("failed", {}, ValueError("no such picture\nat all"))
    (attempt,) = read_ledger(tmp_path)
    assert (attempt.outcome, attempt.error, attempt.rank) == ("failed", "ValueError: no such picture", 0)
    assert attempt.step == 3


def test_a_ledger_that_cannot_be_written_is_said_and_does_not_end_a_run(tmp_path, caplog, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ledger, "append", full)
    RunFolder(tmp_path, load()).close("finished", {})
    assert caplog.text.count("No space left on device") == 2


def test_the_loss_of_another_rank_is_no_cause(tmp_path):
    error = RuntimeError(
        "[gloo/transport/tcp/pair.cc:537] Read error [10.0.0.1]:24470: Connection reset by peer"
    )
    RunFolder(tmp_path, load()).close("failed", {}, error)
    (attempt,) = read_ledger(tmp_path)
    assert (attempt.outcome, attempt.error) == ("died", None)
    ledger.write_failure(tmp_path, 1, 3, "ValueError: x")
    assert read_ledger(tmp_path)[0].error == "ValueError: x"


def test_a_members_folder_knows_its_sweep(tmp_path):
    (tmp_path / "lr").mkdir()
    (tmp_path / "lr" / "sweep.json").write_text("{}")
    RunFolder(tmp_path / "lr" / "members" / "003-abc", load()).close("finished", {})
    assert read_ledger(tmp_path / "lr" / "members" / "003-abc")[0].sweep == "lr"
