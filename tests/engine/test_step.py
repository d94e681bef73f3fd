"""The loss does not depend on how the batch is cut; and what does not need several processes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from dsvlp.engine import step as steps
from dsvlp.engine.flags import LateFlags
from dsvlp.types import Loss
from tests.engine.processes import run

COMMON = [
    "data.synthetic.images=64",
    "data.synthetic.image_size=64",
    "data.workers=0",
    "batch.global_pairs=16",
    "engine.zero=zero0",
    "optimizer.clip_norm=0",
]
TINY = {
    "tiny_svl": [
        "model.image_size=64",
        "model.image.layers=1",
        "model.image.width=32",
        "model.text.layers=1",
        "model.text.width=32",
        "model.text.feed_forward=64",
        "model.cross_layers=1",
        "model.visual_queries=4",
        "objectives.spl={}",
        "objectives.ssul={}",
        "objectives.segl={}",
    ],
    "tiny_pixelbert": [  # five of an image's nine cells are drawn
        "model.image_size=192",
        "model.image.batch_norm=frozen",
        "model.pixels=5",
        "model.text.layers=1",
        "data.captions_per_image=2",
    ],
    "tiny_semvlp": [
        "model.text.layers=2",
        "model.text.width=32",
        "model.text.feed_forward=64",
        "model.cross_from=1",
        "objectives.qa={}",
    ],
}
OBJECTIVES = {
    "tiny_svl": ["itm", "mlm", "ssul", "segl", "spl"],
    "tiny_pixelbert": ["itm", "mlm"],
    "tiny_semvlp": ["itm", "mlm", "mop", "qa"],
}


def gradients(recipe: str, name: str, folder: Path, processes: int, micro: int) -> dict[str, torch.Tensor]:
    overrides = [*TINY[recipe], *COMMON, f"batch.micro_pairs={micro}"]
    run("gradients_of_one_step.py", name, str(folder), recipe, *overrides, world=processes, scratch=folder)
    return load_file(folder / name)


@pytest.mark.parametrize("recipe", TINY)
def test_two_ranks_with_two_unequal_micro_batches_give_the_gradients_of_one_batch(recipe, tmp_path):
    whole = gradients(recipe, "whole", tmp_path, processes=1, micro=16)
    cut = gradients(recipe, "cut", tmp_path, processes=2, micro=4)
    names = OBJECTIVES[recipe]
    counts = cut.pop("counts")
    assert counts.shape == (4, len(names))
    assert torch.equal(counts.sum(0), whole.pop("counts").sum(0))
    unequal = [name for name, column in zip(names, counts.T, strict=True) if len(set(column.tolist())) > 1]
    assert set(unequal) >= set(names[1:]), "the micro-batches must differ, or nothing is tested"
    assert (cut.pop("stop").item(), whole.pop("stop").item()) == (1.0, 0.0)  # rank 1 was asked to stop
    assert whole.keys() == cut.keys()
    top = max(value.abs().max() for value in whole.values())
    for name, expected in whole.items():
        # Below a thousandth of the largest gradient stand sums of terms that cancel (a key's bias has
        # no effect at all): there the difference is the terms' rounding, not the sum's.
        largest = expected.abs().max().clamp(min=1e-3 * top)
        difference = (cut[name] - expected).abs().max() / largest
        assert difference < 1e-5, f"{name}: {difference:.2e}"


def runner(weights: dict[str, float]) -> steps.Step:
    tables = {name: SimpleNamespace(weight=weight) for name, weight in weights.items()}
    recipe = SimpleNamespace(
        objectives=SimpleNamespace(enabled=lambda: tables),
        seed=0,
        engine=SimpleNamespace(cut_texts=False, compile=False),
    )
    engine = SimpleNamespace(device=torch.device("cpu"))
    objectives = {name: SimpleNamespace(seconds={}) for name in weights}
    return steps.Step(engine, SimpleNamespace(objectives=objectives), recipe, accumulation=3)


def test_an_objective_without_targets_gives_exactly_nothing():
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    losses = {"a": Loss(x[0] * 1.0, torch.tensor(4.0)), "b": Loss(x[1] * 0.0, torch.tensor(0.0))}
    total = runner({"a": 0.5, "b": 7.0}).total(losses, torch.tensor([4.0, 0.0]))
    total.backward()
    assert total.item() == pytest.approx(0.5 * 2.0 * 3 / 4)
    assert x.grad.tolist() == pytest.approx([0.5 * 3 / 4, 0.0])


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_makes_every_gradient_nan(value):
    x = torch.ones(3, requires_grad=True)
    steps.poisoned(x.sum() + value).backward()
    assert x.grad.isnan().all()


def test_a_finite_loss_is_not_changed_by_the_check():
    x = torch.ones(3, requires_grad=True)
    loss = steps.poisoned(x.sum() * 0.3)
    loss.backward()
    assert loss.item() == pytest.approx(0.9)
    assert x.grad.tolist() == pytest.approx([0.3] * 3)


def test_dropout_depends_on_step_micro_step_and_rank_and_on_nothing_else():
    def draw(*position: int) -> list[float]:
        torch.rand(17)
        steps.reseed(*position)
        return torch.rand(4).tolist()

    positions = [(0, 1, 0, 0), (0, 2, 0, 0), (0, 1, 1, 0), (0, 1, 0, 1), (1, 1, 0, 0)]
    draws = [draw(*position) for position in positions]
    assert len({tuple(values) for values in draws}) == len(positions)
    assert [draw(*position) for position in positions] == draws


def test_flags_come_one_post_late_and_unchanged():
    flags = LateFlags(torch.device("cpu"), 2)
    assert flags.read() is None
    value = torch.tensor([1.0, 2.0])
    flags.post(value)
    value.fill_(9.0)  # the device goes on
    assert flags.read() == [1.0, 2.0]
    flags.post(value)
    assert flags.read() == [9.0, 9.0]
