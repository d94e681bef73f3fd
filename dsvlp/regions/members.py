"""Runs one function in several processes: the first that fails ends all, and its sentence comes out here."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from typing import Any

from dsvlp.data.pool import end_with_parent
from dsvlp.errors import DataError, DsvlpError


def run_members(
    work: Callable[..., None], arguments: Sequence[tuple[Any, ...]], seconds: float
) -> Iterator[None]:
    """Calls `work` with each tuple of arguments, each in a process of its own; yields while they run.

    Args:
        work: a function of a module; new processes import it.
        arguments: one tuple a process.
        seconds: between two yields, at most.

    Raises:
        DsvlpError: what a member raised.
        DataError: a member was killed.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy CUDA's state and held locks
    errors: SimpleQueue[DsvlpError] = context.SimpleQueue()
    members = [context.Process(target=_member, args=(errors, work, each), daemon=True) for each in arguments]
    for member in members:
        member.start()
    try:
        while running := [member.sentinel for member in members if member.is_alive()]:
            wait(running, seconds)
            _check(members, errors)
            yield
        _check(members, errors)
    finally:
        for member in members:
            member.terminate()
            member.join()


def _member(errors: SimpleQueue[DsvlpError], work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    try:
        work(*arguments)
    except DsvlpError as error:
        errors.put(error)
        sys.exit(1)


def _check(members: Sequence[Any], errors: SimpleQueue[DsvlpError]) -> None:
    """Raises what the members that have failed say."""
    if all(member.exitcode in (None, 0) for member in members):
        return
    if not errors.empty():
        raise errors.get()
    codes = [member.exitcode for member in members if member.exitcode not in (None, 0)]
    raise DataError(
        f"a process of --processes ended with {codes[0]}, perhaps for want of memory",
        "all to end well",
        "Run the same command again with fewer --processes: it goes on where it stopped",
    )
