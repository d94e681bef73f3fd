import os
import signal

import pytest

from dsvlp.engine.stop import SIGNALS, StopFlag, hold


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


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_came_while_the_process_started_is_not_lost(number):
    hold()
    os.kill(os.getpid(), number)  # by default it would end this process
    with StopFlag() as stop:
        assert stop.received == number.name
    assert not set(SIGNALS) & signal.pthread_sigmask(signal.SIG_BLOCK, [])
