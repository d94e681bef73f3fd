"""Processes that work together: the first that fails ends all."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from dsvlp.errors import DataError
from dsvlp.regions.members import run_members


def member(path: str, what: str) -> None:
    """Does what a test wants of a member."""
    if what == "fail":
        raise DataError("it has no boxes", "boxes")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "wait":
        time.sleep(300)
    with open(path, "a", encoding="utf-8") as file:
        file.write(what + "\n")


def wait_with_a_member(path: str) -> None:
    """Starts a member that waits, and waits for it."""
    all_of(run_members(member, [(path, "wait")], 0.05))


def all_of(members) -> int:
    return sum(1 for _ in members)


def test_all_work_and_the_caller_is_woken_meanwhile(tmp_path):
    path = str(tmp_path / "done")
    assert all_of(run_members(member, [(path, "a"), (path, "b")], 0.05)) >= 1
    assert sorted((tmp_path / "done").read_text().split()) == ["a", "b"]


FAILURES = [("fail", "it has no boxes. Expected boxes"), ("die", "ended with -9.*fewer --processes")]


@pytest.mark.parametrize(("what", "said"), FAILURES)
def test_one_that_fails_ends_all_with_its_sentence(tmp_path, what, said):
    began = time.monotonic()
    with pytest.raises(DataError, match=said):
        all_of(run_members(member, [(str(tmp_path / "x"), "wait"), (str(tmp_path / "x"), what)], 0.05))
    assert time.monotonic() - began < 120, "the one that waits is ended"


def test_members_end_when_the_one_that_started_them_is_killed(tmp_path):
    context = multiprocessing.get_context("spawn")
    parent = context.Process(target=wait_with_a_member, args=(str(tmp_path / "x"),))
    parent.start()
    end = time.monotonic() + 120
    while not (members := children(parent.pid)):
        assert time.monotonic() < end, "no member is started"
        time.sleep(0.01)
    parent.kill()
    parent.join(30)
    while any(alive(pid) for pid in members):
        assert time.monotonic() < end, "a member outlives the one that started it"
        time.sleep(0.05)


def children(pid: int | None) -> list[int]:
    """Returns the processes that a process has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def alive(pid: int) -> bool:
    """Returns whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
