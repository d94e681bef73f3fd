import torch
import torch.distributed as td

from dsvlp.engine.bench_wire import sent_bytes, watched
from dsvlp.engine.timer import StepTimer


def test_a_ring_sends_what_is_reduced_twice_and_what_is_gathered_once():
    part, whole = torch.zeros(8), [torch.zeros(8) for _ in range(4)]
    assert sent_bytes("all_reduce", [part], 4) == 2 * 32 * 3 / 4
    assert sent_bytes("all_gather", [whole, part], 4) == 4 * 32 * 3 / 4
    assert sent_bytes("reduce_scatter_tensor", [part, torch.zeros(32)], 4) == 4 * 32 * 3 / 4
    assert sent_bytes("barrier", [], 4) == 0
    assert sent_bytes("all_reduce", [part], 1) == 0


def test_collectives_are_booked_inside_a_part_alone_and_handed_back_after(monkeypatch):
    calls = []
    original = lambda tensor, op=None: calls.append(tensor) or None  # noqa: E731
    monkeypatch.setattr(td, "all_reduce", original)
    with watched() as wire:
        timer = wire.timer = StepTimer(torch.device("cpu"))
        td.all_reduce(torch.ones(2))
        assert timer.read()[0].get("communication") is None  # between steps
        with timer.part("backward"):
            td.all_reduce(torch.ones(2))
        assert timer.read()[0]["communication"] > 0
    assert td.all_reduce is original and len(calls) == 2


def test_waiting_for_a_collective_is_communication_too(monkeypatch):
    waited = []

    class Work:
        def wait(self):
            waited.append(timer.innermost)

        def is_completed(self):
            return True

    monkeypatch.setattr(td, "all_reduce", lambda tensor, async_op: Work())
    with watched() as wire:
        timer = wire.timer = StepTimer(torch.device("cpu"))
        with timer.part("backward"):
            work = td.all_reduce(torch.ones(2), async_op=True)
            work.wait()
        work.wait()
    assert work.is_completed() and waited == ["communication", None]
