import time

import torch

from dsvlp.engine.timer import StepTimer


def test_parts_add_up_and_pauses_are_left_out():
    timer = StepTimer(torch.device("cpu"))
    for _ in range(2):
        with timer.part("data"):
            time.sleep(0.05)
        with timer.part("forward"):
            time.sleep(0.1)
    with timer.paused():
        time.sleep(0.5)
    parts, wall = timer.read()
    assert 0.1 <= parts["data"] < parts["forward"]
    assert parts["backward"] == 0
    assert sum(parts.values()) <= wall < sum(parts.values()) + 0.4
    again, short = timer.read()
    assert sum(again.values()) == 0 and short < 0.4


def test_work_on_the_host_is_told_since_the_last_read_and_without_pauses():
    seconds = {"waiting": 5.0}
    timer = StepTimer(torch.device("cpu"), {"spl": seconds})
    seconds["waiting"] += 2.0
    with timer.paused():
        seconds["waiting"] += 100.0  # validation
    seconds["waiting"] += 1.0
    assert timer.read_host() == {"spl/waiting": 3.0}
    assert timer.read_host() == {"spl/waiting": 0.0}
