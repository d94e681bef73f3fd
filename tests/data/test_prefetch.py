import threading
import time

import pytest

from dsvlp.data.prefetch import Prefetcher
from dsvlp.errors import DataError, RunError


def test_items_come_in_order_and_then_end():
    assert list(Prefetcher(iter(range(50)), ahead=2, timeout_seconds=5, name="numbers")) == list(range(50))


def test_no_more_than_asked_is_made_ahead():
    made = []

    def numbers():
        for number in range(100):
            made.append(number)
            yield number

    prefetcher = Prefetcher(numbers(), ahead=3, timeout_seconds=5, name="numbers")
    end = time.monotonic() + 2
    while len(made) < 4 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 4  # three wait, one is in hand
    prefetcher.close()


def test_an_error_of_the_thread_is_raised_in_the_consumer_after_what_came_before():
    def failing():
        yield 1
        raise DataError("broken")

    prefetcher = Prefetcher(failing(), ahead=2, timeout_seconds=5, name="failing")
    assert next(prefetcher) == 1
    with pytest.raises(DataError, match="broken"):
        next(prefetcher)


def test_a_thread_that_makes_nothing_times_out():
    release = threading.Event()

    def stuck():
        release.wait(20)
        yield 1

    prefetcher = Prefetcher(stuck(), ahead=1, timeout_seconds=0.3, name="stuck thread")
    begin = time.monotonic()
    with pytest.raises(RunError, match=r"'stuck thread' made nothing for 0.3 s"):
        next(prefetcher)
    assert time.monotonic() - begin < 5
    assert prefetcher.wait_seconds > 0.25
    assert not prefetcher.close()  # it hangs still, and closing does not
    release.set()
    assert prefetcher.close()


def test_closing_ends_the_thread_and_the_generator_while_the_queue_is_full():
    ended = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            ended.set()

    prefetcher = Prefetcher(endless(), ahead=1, timeout_seconds=5, name="endless")
    next(prefetcher)
    prefetcher.close()
    prefetcher.close()
    assert ended.is_set()
    assert "endless" not in {thread.name for thread in threading.enumerate()}
