"""What runs inside a step is booked on the part of the system that it belongs to."""

import time

import pytest
import torch
from torch import Tensor, nn

from dsvlp import recipe, system
from dsvlp.engine.parts import GRADIENTS, JOINT, RECOMPUTED, TOWERS, backward_of, marked, part_of
from dsvlp.engine.timer import StepTimer
from dsvlp.system import TrainRequest
from tests.batches import make_batch, make_facts, make_objects, make_pixelbert_recipe, make_semvlp_recipe

SMALL = {
    "tiny_svl": ["model.image_size=32", "model.text.vocabulary=40", "model.text.max_length=10"],
    "tiny_fiber": ["model.text.vocabulary=40", "model.text.max_length=10"],
}


OF_ONE_TRANSFORMER = {"tiny_pixelbert": make_pixelbert_recipe, "tiny_semvlp": make_semvlp_recipe}


def built(name: str, *overrides: str) -> tuple[system.System, system.Prepared]:
    if name in SMALL:
        loaded = recipe.load(name, [*SMALL[name], *overrides])
    else:
        loaded = OF_ONE_TRANSFORMER[name](*overrides)
    made = system.build(loaded, make_facts()).train()
    if recipe.reads_objects(loaded):
        return made, made.prepare(make_objects())
    partners = recipe.swaps_texts(loaded)
    return made, made.prepare(make_batch(image_size=loaded.model.image_size, partners=partners))


def step(made: system.System, prepared: system.Prepared, timer: StepTimer) -> None:
    with timer.part("forward"):
        losses = made(TrainRequest(prepared))
    with timer.part("backward"):
        sum(loss.sum for loss in losses.values()).backward()


@pytest.fixture
def one_thread():
    """Sums in one order, so that gradients can be equal to the bit; all work on one clock."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", [*SMALL, *OF_ONE_TRANSFORMER])
def test_all_time_of_forward_and_backward_is_some_parts(name: str, one_thread, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", time.thread_time)  # nobody else takes any of it
    made, prepared = built(name)
    timer = StepTimer(torch.device("cpu"))
    with marked(made, timer, backward=True):
        step(made, prepared, timer)
        timer.read()
        step(made, prepared, timer)
        found, wall = timer.read()
    for part in TOWERS if name in SMALL else JOINT:
        assert found[part] > 0 and found[backward_of(part)] > 0, part
    assert 0.95 * wall < sum(found.values()) <= wall
    # What is left of the two outer parts lies around the system, not in it.
    assert found["forward"] + found["backward"] < 0.2 * wall


@pytest.mark.parametrize("name", [*SMALL, *OF_ONE_TRANSFORMER])
def test_marks_change_no_gradient_and_leave_no_hook(name: str, one_thread):
    gradients = []
    for mark in (False, True):
        made, prepared = built(name)
        timer = StepTimer(torch.device("cpu"))
        if mark:
            with marked(made, timer, backward=True):
                step(made, prepared, timer)
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.modules())
        else:
            step(made, prepared, timer)
        gradients.append({n: p.grad for n, p in made.named_parameters() if p.grad is not None})
    plain, marks = gradients
    assert plain.keys() == marks.keys()
    assert all(torch.equal(plain[n], marks[n]) for n in plain)


def test_recomputation_is_a_part_of_its_own():
    made, prepared = built("tiny_svl", "engine.activation_checkpointing=full")
    timer = StepTimer(torch.device("cpu"))
    with marked(made, timer, backward=True):
        step(made, prepared, timer)
    found, _ = timer.read()
    assert found[RECOMPUTED] > 0 and found[backward_of("image tower")] > 0


class Sleepy(torch.autograd.Function):
    @staticmethod
    def forward(context, x, forth, back):
        Toy.now += forth
        context.back = back
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        Toy.now += context.back
        return gradient, None, None


class Sleeper(nn.Module):
    def __init__(self, forth: int, back: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.forth, self.back = forth, back

    def forward(self, x: Tensor) -> Tensor:
        return Sleepy.apply(x * self.weight, self.forth, self.back)


class Toy(nn.Module):
    """Two towers, a fusion, a head, each of which takes as long as it says, on a clock of its own."""

    now = 0

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {"image": Sleeper(10, 100), "text": Sleeper(20, 200), "fusion": Sleeper(30, 300)}
        )
        self.objectives = nn.ModuleDict({"mlm": Sleeper(40, 400)})

    def forward(self, x: Tensor) -> Tensor:
        both = self.model["image"](x) + self.model["text"](x)
        Toy.now += 5  # a loss outside of any module of its own
        return self.objectives["mlm"](self.model["fusion"](both)).sum()


def test_each_part_gets_its_own_time_and_no_others(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: Toy.now)
    toy, timer = Toy(), StepTimer(torch.device("cpu"))
    with marked(toy, timer, backward=True):
        with timer.part("forward"):
            loss = toy(torch.ones(3))
        with timer.part("backward"):
            loss.backward()
            Toy.now += 7  # what an engine does behind the last gradient
    found, _ = timer.read()
    assert {part: seconds for part, seconds in found.items() if seconds} == {
        "image tower": 10,
        "text tower": 20,
        "fusion": 30,
        "heads": 40 + 5,
        backward_of("image tower"): 100,
        backward_of("text tower"): 200,
        backward_of("fusion"): 300,
        backward_of("heads"): 400,
        GRADIENTS: 7,
    }


def test_without_backward_marks_backward_is_one_part():
    made, prepared = built("tiny_svl")
    timer = StepTimer(torch.device("cpu"))
    with marked(made, timer, backward=False):
        step(made, prepared, timer)
    found, _ = timer.read()
    assert found["backward"] > 0 and not any("backward" in name for name in found if name != "backward")


def test_every_module_has_a_part():
    assert part_of("model.image.blocks.0.attn") == "image tower"
    assert part_of("model.text") == "text tower"
    assert {part_of(name) for name in ("model", "model.cross.1", "model.image_transform")} == {"fusion"}
    assert {part_of(name) for name in ("", "objectives.mlm.decoder")} == {"heads"}


def test_one_transformer_for_words_and_image_is_a_part_of_its_own():
    for module, part in {
        "model.image.trunk.body.layer1": "image tower",
        "model.objects.project": "image tower",
        "model.text.embeddings": "words",
        "model.text.encoder.layer.0": "transformer",
        "model.cross.1": "transformer",
        "objectives.mop": "heads",
    }.items():
        assert part_of(module, joint=True) == part
