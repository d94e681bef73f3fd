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
