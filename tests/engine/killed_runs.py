"""Trains a run that is killed 20 times, and the same run in peace: `killed_runs.py KILLED PEACE OVERRIDES`.

Each attempt is a process group of its own, forked from here so that twenty of them cost one import.
Even attempts are killed at a drawn moment after they began, odd ones while a checkpoint is being written.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dsvlp import catalog, recipe
from dsvlp.engine.train import train
from dsvlp.launch import local

KILLS = 20
PATIENCE_SECONDS = 60.0


def start(folder: Path, overrides: list[str]) -> int:
    """Returns the process id of an attempt, which leads its own group."""
    child = os.fork()
    os.setpgid(child, child)  # in both, whoever comes first: 0 means oneself
    if child == 0:
        local.leave(local.guard(lambda: int(train(recipe.load("tiny_svl", overrides), folder).stopped)))
    return child


def wait_until(child: int, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        ended, status = os.waitpid(child, os.WNOHANG)
        assert ended == 0, f"attempt ended by itself with {status}"
        assert time.monotonic() < deadline, "no progress"


def newest(folder: Path) -> int:
    """Returns the highest step with a visible checkpoint, 0 where there is none."""
    return max((int(path.name[5:13]) for path in folder.glob("checkpoints/step-*")), default=0)


def being_written(folder: Path) -> list[Path]:
    """Returns the hidden folders of checkpoints under way or torn, the removed ones left out."""
    return [path for path in folder.glob("checkpoints/.step-*") if not path.name.endswith("removed")]


def main() -> int:
    killed, peace, overrides = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    for part in (catalog.SYSTEMS["svl"], *catalog.OBJECTIVES.values()):
        part.load()  # once here, not in every attempt
    draw, torn = random.Random(0), 0
    for attempt in range(KILLS):
        before, left = newest(killed), set(being_written(killed))
        child = start(killed, overrides)
        try:
            if attempt % 2:
                wait_until(child, lambda: bool(set(being_written(killed)) - left))  # noqa: B023
            else:
                if attempt % 4:  # else before or soon after its first step
                    wait_until(child, lambda: newest(killed) > before)  # noqa: B023
                time.sleep(draw.random() * 0.2)
        finally:
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"attempt {attempt} ended by itself with {status}"
        torn += bool(set(being_written(killed)) - left)
        print(f"attempt {attempt}: step {newest(killed)}", flush=True)
    for folder in (killed, peace):
        _, status = os.waitpid(start(folder, overrides), 0)
        assert status == 0, f"{folder.name} ended with {status}"
    print(f"{KILLS} kills, {torn} while saving")
    assert torn >= KILLS // 4, "too few kills hit a save: nothing is tested"
    return 0


if __name__ == "__main__":
    sys.exit(main())
