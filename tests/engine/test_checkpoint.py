from __future__ import annotations

import errno
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dsvlp.engine import checkpoint as module
from dsvlp.engine.checkpoint import LATEST, CheckpointStore, open_checkpoint, read_weights
from dsvlp.engine.fragments import Fragment
from dsvlp.engine.shards import FORMAT, MANIFEST, STATE, hash_file, read_manifest, write_manifest
from dsvlp.errors import CheckpointError, RunError
from tests.engine.processes import ROOT, environment


def fragments(step: int) -> list[Fragment]:
    values = torch.arange(12.0) + step
    return [
        Fragment("layer.weight", "weight", 0, values, (3, 4)),
        Fragment("layer.weight", "exp_avg", 0, values * 2, (3, 4)),
        Fragment("layer.seen", "buffer", 0, torch.tensor([step]), ()),
    ]


def save(store: CheckpointStore, *steps: int, **keys: Any) -> None:
    for step in steps:
        saved = store.save(step, fragments(step), {"step": step}, background=False, **keys)
        assert saved is not None and saved.problem is None and saved.path is not None


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def step_of(folder: Path) -> int:
    """Returns the step that a new process would resume from, after checking that tensors and state agree."""
    found = CheckpointStore(folder).load()
    assert found is not None and found.state == {"step": found.step}
    assert torch.equal(
        found.reader.whole("layer.weight", "weight").flatten(), torch.arange(12.0) + found.step
    )
    return found.step


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=3)


def test_what_is_saved_is_read_back(store: CheckpointStore) -> None:
    assert store.load() is None and store.latest() is None
    save(store, 7)
    assert step_of(store.folder) == 7
    assert store.latest() == store.folder / "step-00000007"
    assert (store.folder / LATEST).read_text() == "step-00000007\n"


def test_weights_are_read_by_name_without_moments(store: CheckpointStore) -> None:
    save(store, 7)
    weights = read_weights(open_checkpoint(store.folder / "step-00000007"))
    assert weights.keys() == {"layer.weight", "layer.seen"}
    assert weights["layer.weight"].shape == (3, 4) and int(weights["layer.seen"]) == 7


def test_the_state_may_change_as_soon_as_save_returns(store: CheckpointStore) -> None:
    live = torch.zeros(1_000_000)
    store.save(1, [Fragment("w", "weight", 0, live, (1_000_000,))], {})
    live.fill_(1.0)
    store.wait()
    assert float(read_weights(open_checkpoint(store.folder / "step-00000001"))["w"].abs().sum()) == 0.0


def test_saving_does_not_wait_for_the_disk(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    write = module.write_shard

    def slow(*arguments: Any) -> Any:
        assert release.wait(20)
        return write(*arguments)

    monkeypatch.setattr(module, "write_shard", slow)
    assert store.save(1, fragments(1), {"step": 1}) is None
    assert store.latest() is None
    release.set()
    saved = store.wait()
    assert saved is not None and saved.path == store.latest()


def test_retention_keeps_the_newest_and_the_protected(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 1, 2, 3, 4, 5, protect=(2,))
    assert names(tmp_path) == [LATEST, "step-00000002", "step-00000004", "step-00000005"]
    save(store, 6)
    assert names(tmp_path) == [LATEST, "step-00000005", "step-00000006"]


def test_the_last_good_one_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)
    write = module.write_manifest

    def watched(*arguments: Any) -> None:
        assert open_checkpoint(tmp_path / "step-00000001").step == 1
        write(*arguments)

    monkeypatch.setattr(module, "write_manifest", watched)
    save(store, 2)
    assert names(tmp_path) == [LATEST, "step-00000002"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "manifest", "state", "empty manifest"])
def test_damage_is_named_and_the_next_older_one_is_used(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    save(store, 1, 2, 3)
    newest = store.folder / "step-00000003"
    (shard,) = newest.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    if damage == "truncated":
        shard.write_bytes(content[:-1])
    elif damage == "flipped":
        content[-5] ^= 1
        shard.write_bytes(content)
    elif damage == "missing":
        shard.unlink()
    elif damage == "manifest":
        text = (newest / MANIFEST).read_bytes()
        (newest / MANIFEST).write_bytes(text.replace(b'"step": 3', b'"step": 9'))
        shard = newest / MANIFEST
    elif damage == "state":
        (newest / STATE).write_bytes(b'{"step": 4}')
        shard = newest / STATE
    else:
        (newest / MANIFEST).write_bytes(b"")
        shard = newest / MANIFEST
    with caplog.at_level(logging.WARNING, "dsvlp"):
        assert step_of(store.folder) == 2
    assert shard.name in caplog.text and "step-00000003" in caplog.text
    with pytest.raises(CheckpointError, match=shard.name.replace(".", r"\.")):
        open_checkpoint(newest)


def test_when_none_verifies_nothing_is_loaded_and_each_is_named(store: CheckpointStore) -> None:
    save(store, 1, 2)
    for shard in store.folder.glob("*/*.safetensors"):
        shard.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"(?s)step-00000001.*step-00000002"):
        CheckpointStore(store.folder).load()


@pytest.mark.parametrize(
    "content", [b"", b"step-", b"\xff\x00" * 50, b"../../etc/passwd", b"step-00000099\n"]
)
def test_a_damaged_pointer_is_named_and_does_no_harm(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    save(store, 1, 2)
    (store.folder / LATEST).write_bytes(content)
    with caplog.at_level(logging.WARNING, "dsvlp"):
        assert step_of(store.folder) == 2
    assert LATEST in caplog.text


def test_a_folder_without_a_manifest_does_not_exist_and_is_cleared_later(store: CheckpointStore) -> None:
    save(store, 1, 2)
    (store.folder / "step-00000002" / MANIFEST).unlink()
    shutil.copytree(store.folder / "step-00000001", store.folder / ".step-00000003.torn-1")
    assert step_of(store.folder) == 1
    save(store, 3)
    assert names(store.folder) == [LATEST, "step-00000001", "step-00000003"]


def test_a_step_repeated_after_damage_replaces_the_damaged_one(tmp_path: Path) -> None:
    save(CheckpointStore(tmp_path, keep=2), 1, 2)
    (shard,) = (tmp_path / "step-00000002").glob("*.safetensors")
    shard.write_bytes(b"")
    store = CheckpointStore(tmp_path, keep=2)
    found = store.load()
    assert found is not None and found.step == 1
    save(store, 2)
    assert names(tmp_path) == [LATEST, "step-00000001", "step-00000002.1"]
    assert step_of(tmp_path) == 2


def no_space(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["write_shard", "write_file", "write_manifest", "sync_folder"])
def test_a_full_disk_leaves_the_old_ones_and_the_run(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    save(store, 1, 2)
    before = names(store.folder)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "dsvlp"):
        patch.setattr(module, where, no_space)
        saved = store.save(3, fragments(3), {"step": 3}, background=False)
    assert saved is not None and saved.path is None and "No space left" in str(saved.problem)
    assert "step 3 was not written" in caplog.text
    assert names(store.folder) == before and step_of(store.folder) == 2
    save(store, 4)
    assert step_of(store.folder) == 4


def test_space_is_asked_for_before_it_is_written(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(Path("/"))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=50))
    monkeypatch.setattr(module, "write_shard", lambda *_: pytest.fail("written on a full disk"))
    saved = store.save(3, fragments(3), {}, background=False)
    assert saved is not None and "104 bytes are needed" in str(saved.problem)


def test_a_disk_that_keeps_refusing_ends_the_run(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)
    monkeypatch.setattr(module, "write_shard", no_space)
    with pytest.raises(RunError, match="5 checkpoints in a row"):
        for step in range(2, 9):
            store.save(step, fragments(step), {"step": step}, background=False)
    assert step_of(store.folder) == 1


def test_a_write_that_reads_back_differently_is_not_committed(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)
    write = module.write_shard

    def lying(path: Path, pieces: Any) -> Any:
        entry = write(path, pieces)
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
        return entry

    monkeypatch.setattr(module, "write_shard", lying)
    saved = store.save(2, fragments(2), {"step": 2}, background=False)
    assert saved is not None and "reads back differently" in str(saved.problem)
    assert step_of(store.folder) == 1


def test_a_bug_in_the_background_comes_up_at_the_next_call(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_shard", bug)
        store.save(1, fragments(1), {"step": 1})
        with pytest.raises(ZeroDivisionError):
            store.wait()


class Canary:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_a_valid_manifest_is_refused_and_not_run(
    store: CheckpointStore, tmp_path: Path
) -> None:
    save(store, 1)
    folder = store.folder / "step-00000001"
    manifest = read_manifest(folder).model_dump(mode="json")
    assert manifest["format"] == FORMAT
    for file in list(manifest["files"]):
        (folder / file).write_bytes(pickle.dumps(Canary(tmp_path / "canary")) + b"." * 400)
        manifest["files"][file] = hash_file(folder / file).model_dump()
    write_manifest(folder / MANIFEST, manifest)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        CheckpointStore(store.folder).load()
    (folder / STATE).write_bytes(b"{}")
    manifest["files"][STATE] = hash_file(folder / STATE).model_dump()
    write_manifest(folder / MANIFEST, manifest)
    with pytest.raises(CheckpointError, match="safetensors"):
        read_weights(open_checkpoint(folder))
    assert not (tmp_path / "canary").exists()


def test_killed_at_any_moment_of_saving_a_whole_one_is_there(tmp_path: Path) -> None:
    folder, draw, last = tmp_path / "checkpoints", random.Random(0), 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "engine" / "saver.py"), str(folder)],
            env=environment(tmp_path),
        )
        try:
            deadline = time.monotonic() + 60
            while newest(folder) <= last and time.monotonic() < deadline:
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(draw.random() * 0.2)
        finally:
            process.kill()
            process.wait(20)
        found = CheckpointStore(folder).load()
        assert found is not None and found.step > last
        assert float(found.reader.whole("w", "weight").min()) == found.step == found.state["step"]
        last = found.step
    store = CheckpointStore(folder, keep=1)
    store.save(last + 1, [], {}, background=False)
    assert names(folder) == [LATEST, f"step-{last + 1:08d}"]


def newest(folder: Path) -> int:
    """Returns the highest step with a visible folder, 0 where there is none."""
    return max((int(p.name[5:13]) for p in folder.glob("step-*")), default=0)
