import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dsvlp.engine.stop import SIGNALS, StopFlag

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_first_signal_only_sets_the_flag(number):
    with StopFlag() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number.name


def test_a_second_sigint_ends_at_once_and_other_seconds_do_not():
    with StopFlag() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.received == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_handlers_of_before_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopFlag():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


HELD = """
import os, signal, sys
from dsvlp.engine.stop import SIGNALS, StopFlag, hold

hold()
os.kill(os.getpid(), int(sys.argv[1]))  # by default it would end this process
with StopFlag() as stop:
    print(stop.received)
assert not set(SIGNALS) & signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_came_while_the_process_started_is_not_lost(number):
    # In a process of its own: a thread that began before `hold` would take the signal.
    done = subprocess.run(
        [sys.executable, "-c", HELD, str(int(number))],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (0, number.name), done.stderr
