"""A run with `--trace` leaves a trace of its steps 10 to 15 that names our parts; one without, nothing."""

import gzip
import json
import logging

import pytest
import torch

from dsvlp import recipe, system
from dsvlp.engine.timer import StepTimer
from dsvlp.engine.trace import FIRST, FOLDER, LAST, Trace
from dsvlp.system import TrainRequest
from tests.batches import make_batch, make_facts


@pytest.fixture
def made():
    torch.manual_seed(0)
    sizes = ["model.image_size=32", "model.text.vocabulary=40", "model.text.max_length=10"]
    return system.build(recipe.load("tiny_svl", sizes), make_facts())


def take(made, timer: StepTimer) -> None:
    with timer.part("prepare"):
        prepared = made.prepare(make_batch())
    with timer.part("forward"):
        losses = made(TrainRequest(prepared))
    with timer.part("backward"):
        sum(loss.sum for loss in losses.values()).backward()


def test_steps_10_to_15_are_traced_under_the_names_of_our_parts(made, tmp_path):
    timer = StepTimer(torch.device("cpu"))
    trace = Trace(tmp_path, made, timer)
    for _ in range(LAST + 3):
        take(made, timer)
        trace.step()
    trace.close()
    (path,) = (tmp_path / FOLDER).iterdir()
    assert path.name.startswith("rank-0.") and path.name.endswith(".pt.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    labels = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    for name in ("prepare", "forward", "backward", "image tower", "text tower", "fusion", "heads"):
        assert name in labels
    assert labels.count("forward") == LAST - FIRST + 1
    assert any(event["name"].startswith("aten::") for event in events)
    assert not timer.labelled and not any(m._forward_hooks for m in made.modules())


def test_an_attempt_that_ends_early_writes_what_it_has_and_says_so(made, tmp_path, caplog):
    for steps in (FIRST - 2, FIRST + 1):
        folder, timer = tmp_path / str(steps), StepTimer(torch.device("cpu"))
        trace = Trace(folder, made, timer)
        for _ in range(steps):
            take(made, timer)
            trace.step()
        with caplog.at_level(logging.WARNING):
            trace.close()
        assert f"made only {steps}" in caplog.text
        assert (folder / FOLDER).exists() == (steps >= FIRST)
        assert not timer.labelled and not any(m._forward_hooks for m in made.modules())
