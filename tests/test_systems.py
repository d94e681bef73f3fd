"""What every system of the catalog promises, on batches of the loader: a new system is tested as it is named.

A system is its recipe `tiny_<name>` on synthetic scenes, made smaller where `SMALLER` knows how.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dsvlp import catalog, config, recipe
from dsvlp.data.opened import Data, open_data
from dsvlp.engine.inference import Trained
from dsvlp.launch import local
from dsvlp.passes import select
from dsvlp.predict import export
from dsvlp.recipe import Recipe
from dsvlp.system import ImageRequest, MatchRequest, System, TextRequest, TrainRequest, build
from dsvlp.types import Batch, Encoded, States
from tests.batches import take_pairs
from tests.engine.processes import ROOT
from tests.engine.test_train import numbers, state

COMMON = (
    "data.synthetic.images=24",
    "data.synthetic.image_size=64",
    "data.workers=0",
    "data.captions_per_image=1",
    "batch.global_pairs=8",
    "batch.micro_pairs=8",
)
SMALLER = {
    "svl": ("model.image_size=32", "model.image.layers=1", "objectives.segl.at=post"),
    "fiber": ("model.image_size=64",),
    "meter": ("model.image_size=64", "model.fusion.layers=2"),
    "pixelbert": ("model.image_size=128", "model.text.layers=2"),
    "semvlp": ("model.mode_schedule=step", "objectives.qa.weight=1.0"),
}
PERIOD = 2  # steps in which a schedule of modes has had all of them
ORDER = [4, 1, 6, 3, 0, 7, 2, 5]  # even places stay even: a micro-batch of two modes tells them apart by it

each_system = pytest.mark.parametrize("name", sorted(catalog.SYSTEMS))


def recipe_of(name: str) -> Recipe:
    return recipe.load(f"tiny_{name}", [*COMMON, *SMALLER.get(name, ())])


@dataclass(frozen=True)
class World:
    """A system's recipe, its data, and one batch for each step of a period."""

    recipe: Recipe
    data: Data
    batches: tuple[Batch, ...]

    @property
    def batch(self) -> Batch:
        return self.batches[0]

    def system(self) -> System:
        """Returns a system far from where weights start, where gates are closed and all rows look alike."""
        system, draw = build(self.recipe, self.data.facts), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in system.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.05)
        return system


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("systems")


@pytest.fixture(scope="module")
def worlds(cache: Path) -> Iterator[dict[str, World]]:
    """Each system's world, made when it is first asked for."""
    made: dict[str, World] = {}
    yield made
    for world in made.values():
        world.data.train.close()


@pytest.fixture
def world(request: pytest.FixtureRequest, worlds: dict[str, World], cache: Path) -> World:
    name = request.getfixturevalue("name")
    if name not in worlds:
        loaded = recipe_of(name)
        data = open_data(loaded, cache / "dsvlp")
        worlds[name] = World(loaded, data, tuple(next(data.train) for _ in range(PERIOD)))
    return worlds[name]


def encoded(system: System, batch: Batch) -> tuple[States, States]:
    """Returns image and text states below the fusion, one row a pair."""
    image = system(ImageRequest(batch.images, batch.image_mask))
    text = system(TextRequest(batch.text_ids, batch.text_mask))
    return select(image, batch.pairs[:, 0]), select(text, batch.pairs[:, 1])


def fused(system: System, batch: Batch) -> tuple[Encoded, Tensor]:
    """Returns the fused states and match scores of a batch's true pairs, in evaluation mode."""
    system.eval()
    with torch.no_grad():
        return system(MatchRequest(*encoded(system, batch)))


def losses(system: System, batch: Batch) -> Tensor:
    """Returns the sum over objectives of their mean losses."""
    found = system(TrainRequest(system.prepare(batch)))
    return torch.stack([loss.sum / loss.count.clamp(min=1) for loss in found.values()]).sum()


def assert_same(one: tuple[Encoded, Tensor], other: tuple[Encoded, Tensor]) -> None:
    """Compares scores, joint features and the states of real tokens; the other may be padded further."""
    assert torch.allclose(one[1], other[1], atol=1e-4)
    assert torch.allclose(one[0].pooled, other[0].pooled, atol=1e-4)
    for mine, theirs in ((one[0].image, other[0].image), (one[0].text, other[0].text)):
        count = mine.mask.shape[1]
        assert torch.equal(mine.mask, theirs.mask[:, :count]) and not theirs.mask[:, count:].any()
        assert torch.allclose(mine.tokens[mine.mask], theirs.tokens[:, :count][mine.mask], atol=1e-4)


@each_system
def test_it_builds_from_its_tiny_recipe_with_the_catalogs_classes(name: str, world: World) -> None:
    system = build(world.recipe, world.data.facts)
    assert type(system.model) is catalog.SYSTEMS[name].load()
    assert list(system.objectives) == list(world.recipe.objectives.enabled())
    for objective, module in system.objectives.items():
        assert type(module) is catalog.OBJECTIVES[objective].load() and module.name == objective


def test_every_objective_of_the_catalog_is_its_class_and_in_a_shipped_recipe() -> None:
    for name, entry in catalog.OBJECTIVES.items():
        assert entry.load().name == name
    shipped = [recipe.load(path.stem) for path in config.recipe_path("tiny_svl").parent.glob("*.toml")]
    assert set().union(*(one.objectives.enabled() for one in shipped)) >= set(catalog.OBJECTIVES)


@each_system
def test_states_have_the_shapes_that_the_model_says(name: str, world: World) -> None:
    system, batch = world.system(), world.batch
    model, (image, text) = system.model, encoded(system.eval(), batch)
    pairs, length = len(batch.pairs), batch.text_ids.shape[1]
    assert image.mask.shape == image.tokens.shape[:2] and len(image.tokens) == pairs
    assert torch.equal(text.mask, batch.text_mask[batch.pairs[:, 1]])
    found, scores = fused(system, batch)
    assert found.pooled.shape == (pairs, model.pooled_width) and scores.shape == (pairs,)
    assert found.text.tokens.shape == (pairs, length, model.width)
    assert found.image.tokens.shape[::2] == (pairs, model.width)
    assert found.image.mask.shape == found.image.tokens.shape[:2]


@each_system
def test_padding_changes_no_state(name: str, world: World) -> None:
    system, batch = world.system(), world.batch
    texts = len(batch.text_ids)
    longer = replace(
        batch,
        text_ids=torch.cat((batch.text_ids, torch.full((texts, 2), 9)), 1),
        text_mask=torch.cat((batch.text_mask, torch.zeros(texts, 2, dtype=torch.bool)), 1),
    )
    if batch.images.ndim == 3:  # objects; pictures of one size have no padding
        assert batch.image_mask is not None
        more = torch.ones_like(batch.images[:, :2])
        longer = replace(
            longer,
            images=torch.cat((batch.images, more), 1),
            image_mask=torch.cat((batch.image_mask, torch.zeros(len(more), 2, dtype=torch.bool)), 1),
        )
    assert_same(fused(system, batch), fused(system, longer))


@each_system
def test_the_order_of_the_batch_changes_only_the_order(name: str, world: World) -> None:
    system, batch = world.system(), world.batch
    found, scores = fused(system, batch)
    other, same = fused(system, take_pairs(batch, ORDER))
    order = torch.tensor(ORDER)
    ordered = Encoded(select(found.image, order), select(found.text, order), found.pooled[order])
    assert_same((ordered, scores[order]), (other, same))
    values = [float(losses(world.system().eval(), one).detach()) for one in (batch, take_pairs(batch, ORDER))]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


@each_system
def test_every_parameter_gets_a_gradient_within_a_schedules_period(name: str, world: World) -> None:
    system = world.system()
    for batch in world.batches:
        losses(system, batch).backward()
    left_out = [n for n, p in system.named_parameters() if p.requires_grad and p.grad is None]
    assert not left_out
    # A key's bias moves all logits of a query alike.
    zero = [n for n, p in system.named_parameters() if p.grad is not None and not p.grad.any()]
    assert not [n for n in zero if not n.endswith("key.bias")]


@each_system
def test_each_loss_falls_on_one_batch(name: str, world: World) -> None:
    system = build(world.recipe, world.data.facts)
    prepared = system.prepare(world.batch)
    optimizer = torch.optim.Adam(system.parameters(), lr=2e-3)
    seen: list[dict[str, float]] = []
    for _ in range(40):
        found = {k: loss for k, loss in system(TrainRequest(prepared)).items() if loss.count}
        means = {k: loss.sum / loss.count for k, loss in found.items()}
        seen.append({k: float(mean.detach()) for k, mean in means.items()})
        optimizer.zero_grad()
        torch.stack(list(means.values())).sum().backward()
        optimizer.step()
    assert seen[0].keys() == set(world.recipe.objectives.enabled())
    assert sum(seen[-1].values()) < 0.7 * sum(seen[0].values())
    assert not [name for name, first in seen[0].items() if seen[-1][name] > first]


@each_system
def test_an_export_gives_equal_outputs(name: str, world: World, tmp_path: Path) -> None:
    system, batch = world.system().train(), world.batch
    losses(system, batch)  # moves what buffers remember
    trained = Trained(world.recipe, world.data.facts, system, 7, tmp_path)
    export.write(trained, world.data.tokenizer, tmp_path / "export")
    again, tokenizer = export.read(tmp_path / "export")
    assert again.facts == world.data.facts and again.recipe == world.recipe and again.step == 7
    assert tokenizer.fingerprint == world.data.tokenizer.fingerprint
    (mine, scores), (theirs, others) = fused(system, batch), fused(again.system, batch)
    assert torch.equal(scores, others) and torch.equal(mine.pooled, theirs.pooled)
    assert torch.equal(mine.text.tokens, theirs.text.tokens)
    assert torch.equal(losses(system, batch), losses(again.system, batch))


@pytest.mark.slow
@each_system
def test_a_stopped_run_goes_on_bit_for_bit(name: str, tmp_path: Path, cache: Path) -> None:
    keys = [f"tiny_{name}", *COMMON, *SMALLER.get(name, ()), "schedule.steps=4", "watch.validation_pairs=8"]
    keys += ["checkpoint.every_steps=2", "watch.log_every_steps=1", "model.text.dropout=0.1"]
    keys += ["engine.deterministic=true"]  # where there is a GPU, this runs on it
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    script = str(ROOT / "tests" / "engine" / "faulty_run.py")
    runs = [str(whole), "", *keys, "--", str(cut), "stop:1:0", *keys, "--", str(cut), "", *keys]
    environment = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    assert local.launch([sys.executable, script, *runs], 1, {**os.environ, **environment}) == 0
    (expected, counters), (found, others) = state(whole, 4), state(cut, 4)
    assert counters == others and expected.keys() == found.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
    assert numbers(whole) == numbers(cut)
    assert [line["step"] for line in numbers(cut) if "loss/total" in line] == [1, 2, 3, 4]
