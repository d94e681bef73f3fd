import time

import torch

from dsvlp.engine.timer import StepTimer


def test_parts_add_up_and_pauses_are_left_out(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    timer = StepTimer(torch.device("cpu"))
    for _ in range(2):
        with timer.part("data"):
            now += 1
        now += 10
        with timer.part("forward"):
            now += 2
    with timer.paused():
        now += 100
    parts, wall = timer.read()
    assert parts == {"data": 2, "prepare": 0, "forward": 4, "backward": 0, "step": 0}
    assert wall == 26
    again, short = timer.read()
    assert sum(again.values()) == 0 and short == 0


def test_work_on_the_host_is_told_since_the_last_read_and_without_pauses():
    seconds = {"waiting": 5.0}
    timer = StepTimer(torch.device("cpu"), {"spl": seconds})
    seconds["waiting"] += 2.0
    with timer.paused():
        seconds["waiting"] += 100.0  # validation
    seconds["waiting"] += 1.0
    assert timer.read_host() == {"spl/waiting": 3.0}
    assert timer.read_host() == {"spl/waiting": 0.0}


def test_a_part_inside_another_is_taken_from_it_and_a_turn_goes_on_under_another_name(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    timer = StepTimer(torch.device("cpu"))
    with timer.part("forward"):
        now += 1
        with timer.part("fusion"):
            now += 2
            with timer.part("fusion"):
                now += 4
        now += 8
        timer.turn("heads")
        now += 16
    parts, wall = timer.read()
    assert (parts["forward"], parts["fusion"], parts["heads"]) == (9, 6, 16)
    assert wall == 31 and timer.innermost is None
