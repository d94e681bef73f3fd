"""A background thread that makes things ahead, and a consumer that can neither hang nor miss its error."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Generic, TypeVar

from dsvlp.errors import RunError

T = TypeVar("T")

_POLL_SECONDS = 0.1
_JOIN_SECONDS = 10.0


class Prefetcher(Generic[T]):
    """Iterates over `items` in a thread, at most `ahead` of them waiting.

    An exception of the thread is raised in the consumer, after the items made before it. `close`
    ends the thread and closes the generator in it.

    Args:
        items: a generator; it runs in the thread alone.
        ahead: finished items that may wait.
        timeout_seconds: how long the consumer waits for one.
        name: the thread's name, and the message's.
    """

    def __init__(self, items: Iterator[T], ahead: int, timeout_seconds: float, name: str) -> None:
        self._queue: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._timeout = timeout_seconds
        self._items = items
        self._thread = threading.Thread(target=self._produce, name=name, daemon=True)
        self.wait_seconds = 0.0
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        begin = time.monotonic()
        try:
            kind, value = self._get(begin + self._timeout)
        finally:
            self.wait_seconds += time.monotonic() - begin
        if kind == "item":
            return value  # type: ignore[return-value]
        self.close()
        if isinstance(value, BaseException):
            raise value
        raise StopIteration

    def close(self) -> bool:
        """Ends the thread and returns whether it has ended; a thread that hangs is not waited for.

        Harmless when called twice.
        """
        self._stop.set()
        self._thread.join(min(self._timeout, _JOIN_SECONDS))
        return not self._thread.is_alive()

    def _get(self, deadline: float) -> tuple[str, T | BaseException | None]:
        while True:
            try:
                return self._queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                pass
            if not self._thread.is_alive() and self._queue.empty():
                raise RunError(f"the thread {self._thread.name!r} has ended and left nothing")
            if time.monotonic() > deadline:
                raise RunError(
                    f"the thread {self._thread.name!r} made nothing for {self._timeout:g} s",
                    "one micro-batch in that time",
                    "See whether the storage answers, or raise data.timeout_seconds",
                )

    def _produce(self) -> None:
        try:
            for item in self._items:
                if not self._put("item", item):
                    return
            self._put("end", None)
        except BaseException as error:  # not lost: the consumer raises it
            self._put("error", error)
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()

    def _put(self, kind: str, value: T | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put((kind, value), timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False
