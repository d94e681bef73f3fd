"""A pool of threads for image work, each running torch's operations alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from dsvlp.errors import DataError

R = TypeVar("R")


class Threads:
    """Runs jobs in threads; without any, in the thread that submits them.

    Args:
        workers: threads; 0: none.
    """

    def __init__(self, workers: int) -> None:
        self._pool = single_threaded_pool(workers) if workers else None

    def submit(self, work: Callable[[], R]) -> Future[R]:
        """Begins a job. What it raises comes out of the future."""
        if self._pool is not None:
            return self._pool.submit(work)
        future: Future[R] = Future()
        try:
            future.set_result(work())
        except DataError as error:
            future.set_exception(error)
        return future

    def close(self, wait: bool = True) -> None:
        """Ends the threads; jobs that have not begun are dropped. `wait`: until they have ended."""
        if self._pool is not None:
            self._pool.shutdown(wait=wait, cancel_futures=True)


def single_threaded_pool(workers: int) -> ThreadPoolExecutor:
    """Returns a pool whose threads run torch's operations in one thread each.

    The pool is the parallelism; torch's own threads under it would fight for the same cores. torch
    keeps the count a thread, but a new thread inherits the last one set, hence it is set back here.
    """
    before = torch.get_num_threads()
    ready = threading.Barrier(workers + 1)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="dsvlp-decode")

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # what a thread has set holds only once it has asked
        ready.wait(60)

    for _ in range(workers):
        pool.submit(begin)
    ready.wait(60)
    torch.set_num_threads(before)
    return pool
