"""Spreads chunks of images over worker processes. Workers import this file: neither FFCV nor torch."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from dsvlp.data import parts
from dsvlp.data.parts import Rules
from dsvlp.errors import DataError
from dsvlp.types import ImageSource


def make_parts(
    chunks: Iterator[list[ImageSource]], folder: Path, rules: Rules, processes: int
) -> Iterator[Path]:
    """Makes the part of each chunk and yields them as they get finished.

    Args:
        chunks: images, read ahead by at most two chunks a process.
        folder: where the parts go.
        rules: what the images are held against.
        processes: number of workers; 1: in this process.

    Raises:
        DataError: an annotation is wrong, or a worker died; the finished parts stay.
        OSError: the disk is full.
    """
    numbered = ((folder / f"part-{number:08d}", chunk) for number, chunk in enumerate(chunks))
    if processes <= 1:
        yield from (parts.make(path, chunk, rules) for path, chunk in numbered)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks held by other threads
    pool = ProcessPoolExecutor(processes, context, initializer=end_with_parent)
    waiting: set[Future[Path]] = set()
    try:
        for path, chunk in numbered:
            waiting.add(pool.submit(parts.make, path, chunk, rules))
            if len(waiting) >= 2 * processes:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in waiting)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that prepares images was ended from outside, perhaps for want of memory",
            fix="Run the same command again with fewer --processes: it goes on where it stopped",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """Ends this worker when the writer is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
