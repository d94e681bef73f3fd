"""Shared prefixes: the same losses and gradients from fewer executed blocks."""

import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsvlp.passes import Passes, joined
from dsvlp.recipe import Recipe
from dsvlp.system import System, TrainRequest, build
from dsvlp.types import Batch, Encoded, Fetched, States
from tests.batches import make_batch, make_facts, make_fetched, make_fiber_recipe, make_recipe

PAIRS, FETCHED = 8, 6
SVL_VIEWS = ("objectives.itc.view=clean", "objectives.mlm.view=masked", "objectives.mlm.tied=false")
RECIPES = {
    "fiber": make_fiber_recipe(),
    "fiber, queue": make_fiber_recipe("objectives.itm.negatives=queue", "objectives.itc.queue=16"),
    "fiber, queue at once": make_fiber_recipe(
        "objectives.itm.negatives=queue", "objectives.itm.negatives_delay=0", "objectives.itc.queue=16"
    ),
    "svl": make_recipe(
        *SVL_VIEWS,
        "objectives.itm={view='clean', negatives='batch'}",
        "objectives.segl.view=clean",
        objectives=("itc", "itm", "mlm", "segl"),
    ),
}


def system(recipe: Recipe, share: bool) -> System:
    made = build(recipe, make_facts())
    torch.manual_seed(1)
    with torch.no_grad():  # far from the start: gates open, similarities spread
        for name, parameter in made.named_parameters():
            if not name.endswith("temperature"):
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    queue = made.objectives["itc"].queue
    if recipe.objectives.itm is not None and recipe.objectives.itm.negatives_delay == 0:
        draw = torch.Generator().manual_seed(2)
        for part in (queue.image, queue.text):
            part.copy_(torch.nn.functional.normalize(torch.randn(part.shape, generator=draw), dim=1))
        queue.rows.copy_(torch.arange(16) + 1000)
        queue.samples.copy_(torch.arange(16) + 2000)
    made.share_prefixes = share
    return made


def bring(samples: Tensor) -> Fetched:
    """Returns images and texts as the loader would: the same ones for the same samples."""
    assert ((samples >= 2000) | (samples == -1)).all() and (samples >= 0).any()
    every, index = make_fetched(17, 64), (samples - 1999).clamp(min=0)
    parts = {f.name: getattr(every, f.name)[index[:, 0]] for f in fields(Fetched)}
    texts = {name: getattr(every, name)[index[:, 1]] for name in ("text_ids", "text_mask", "special_mask")}
    rows = torch.where(samples >= 0, samples - 1000, -1)
    return Fetched(**{**parts, **texts, "rows": rows, "samples": samples})


def batch(name: str) -> Batch:
    size = 32 if name == "svl" else 64
    made = make_batch(PAIRS, captions=2, partners=False, image_size=size)
    return replace(made, fetched=make_fetched(FETCHED, size)) if name == "fiber, queue" else made


def gradients(made: System, name: str) -> tuple[dict[str, float], dict[str, Tensor]]:
    losses = made(TrainRequest(made.prepare(batch(name)), bring))
    sum(loss.sum / loss.count for loss in losses.values()).backward()
    values = {key: float((loss.sum / loss.count).detach()) for key, loss in losses.items()}
    return values, {key: p.grad for key, p in made.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", RECIPES)
def test_shared_and_separate_passes_give_the_same_losses_and_gradients(name: str) -> None:
    shared, apart = (gradients(system(RECIPES[name], share), name) for share in (True, False))
    assert shared[0] == pytest.approx(apart[0], rel=1e-5)
    largest = max(float(g.abs().max()) for g in shared[1].values())
    assert shared[1].keys() == apart[1].keys()
    for key, gradient in shared[1].items():
        scale = max(float(gradient.abs().max()), 1e-2 * largest)
        assert float((gradient - apart[1][key]).abs().max()) < 1e-5 * scale, key


@contextmanager
def rows_through(blocks: dict[str, nn.Module]) -> Iterator[tuple[Counter[str], Counter[str]]]:
    """Counts the rows that go through each block, and the calls."""
    rows, calls = Counter[str](), Counter[str]()

    def hook(name: str) -> Any:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            rows[name] += len(inputs[0])
            calls[name] += 1

        return count

    handles = [block.register_forward_hook(hook(name)) for name, block in blocks.items()]
    yield rows, calls
    for handle in handles:
        handle.remove()


def parts(made: System) -> dict[str, nn.Module]:
    """Returns one block of each stretch of FIBER's towers."""
    model: Any = made.model
    return {
        "image below": model.image.patch_embed,
        "text below": model.text.encoder.layer[0].attention.self,
        "image fusion": model.fusion[2].image.query,
        "text fusion": model.fusion[2].text.query,
        "image top": model.image.layers[3].blocks[1].mlp,
        "text top": model.text.encoder.layer[3].intermediate,
    }


@pytest.mark.parametrize("share", [True, False])
def test_the_executed_blocks_are_as_few_as_the_sharing_allows(share: bool) -> None:
    made, images = system(RECIPES["fiber"], share), PAIRS // 2
    prepared = made.prepare(batch("fiber"))
    with rows_through(parts(made)) as (rows, calls):
        made(TrainRequest(prepared))
    fused = 4 * PAIRS  # MLM's, ITM's true pairs, its negative texts, its negative images
    if share:
        assert (rows["image below"], rows["text below"]) == (images, 2 * PAIRS)
        assert calls["image fusion"] == calls["text fusion"] == 1
    else:  # ITC's; each view's own; the negatives'
        assert rows["image below"] == images + 2 * images + 2 * PAIRS
        assert rows["text below"] == PAIRS + 2 * PAIRS + 2 * PAIRS
    assert rows["text fusion"] == fused
    assert rows["image top"] == fused + images and rows["text top"] == fused + PAIRS


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(("name", "fetched"), [("fiber, queue", FETCHED), ("fiber, queue at once", PAIRS)])
def test_what_was_fetched_is_encoded_below_the_fusion_alone(name: str, fetched: int, share: bool) -> None:
    made, images = system(RECIPES[name], share), PAIRS // 2
    prepared = made.prepare(batch(name))
    with rows_through(parts(made)) as (rows, _):
        made(TrainRequest(prepared, bring))
    if share:
        assert (rows["image below"], rows["text below"]) == (images + fetched, 2 * PAIRS + fetched)
    else:  # the negatives' alone
        assert rows["image below"] == images + 2 * images + 2 * PAIRS
        assert rows["text below"] == PAIRS + 2 * PAIRS + 2 * PAIRS
    assert rows["text fusion"] == 4 * PAIRS
    assert rows["image top"] == 4 * PAIRS + images and rows["text top"] == 4 * PAIRS + PAIRS


def test_masking_one_view_leaves_the_other_as_it_was() -> None:
    made, original = build(RECIPES["fiber"], make_facts()), make_batch(64, partners=False, image_size=64)
    ids = original.text_ids.clone()
    views = made.prepare(original).views
    assert views["clean"] is original and torch.equal(views["clean"].text_ids, ids)
    assert not torch.equal(views["masked"].text_ids, ids)
    assert views["masked"].images is original.images


class Counting:
    """A model that counts what it is asked to encode."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode_image(
        self, images: Tensor, image_mask: Tensor | None, image_keys: Tensor | None = None
    ) -> States:
        self.encoded.append("image")
        return States(images.flatten(1)[:, None], torch.ones(len(images), 1, dtype=torch.bool))


@pytest.mark.parametrize(("share", "runs"), [(True, 1), (False, 2)])
def test_an_image_that_two_views_hold_is_encoded_once(share: bool, runs: int) -> None:
    made, model = build(RECIPES["fiber"], make_facts()), Counting()
    passes = Passes(model, made.prepare(batch("fiber")).views, share)  # type: ignore[arg-type]
    for view in ("clean", "masked", "clean"):
        passes.image(view)
    assert model.encoded == ["image"] * runs


class Telling:
    """A model whose image states are the mean of an image and the key that it was encoded with."""

    def encode_image(self, images: Tensor, image_mask: Tensor | None, image_keys: Tensor) -> States:
        parts = torch.stack((images.double().mean((1, 2, 3)), image_keys.double()), 1)
        return States(parts[:, None], torch.ones(len(images), 1, dtype=torch.bool))

    def encode_text(self, text_ids: Tensor, text_mask: Tensor) -> States:
        return States(text_ids[..., None], text_mask)

    def fuse(self, image: States, text: States) -> Encoded:
        return Encoded(image, text, image.tokens[:, 0])


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("source", ["own", "gathered", "fetched"])
def test_every_image_is_encoded_with_its_own_key_wherever_it_comes_from(source: str, share: bool) -> None:
    view, images = make_batch(PAIRS, captions=2, partners=False), PAIRS // 2
    means, keys = view.images.double().mean((1, 2, 3)), view.image_keys
    if source == "fetched":
        past = make_fetched(FETCHED)
        view = replace(view, fetched=past)
        means = torch.cat((means, past.images.double().mean((1, 2, 3))))
        keys = torch.cat((keys, past.image_keys))
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(0))
    pairs = torch.stack((order, order % images), 1)
    passes = Passes(Telling(), {"view": view}, share)  # type: ignore[arg-type]
    found = passes.ask("view", pairs, gathered=source == "gathered").result().pooled
    assert found is not None and len(keys.unique()) == len(keys)
    assert torch.equal(found[:, 1], keys.double()[order])
    torch.testing.assert_close(found[:, 0], means[order])


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", RECIPES)
def test_a_step_frees_its_passes_without_the_garbage_collector(
    name: str, share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, seen = system(RECIPES[name], share), []
    build_passes = Passes.__init__

    def noted(self: Passes, *arguments: Any, **more: Any) -> None:
        build_passes(self, *arguments, **more)
        seen.append(weakref.ref(self))

    monkeypatch.setattr(Passes, "__init__", noted)
    gc.collect()
    gc.disable()
    try:
        losses = made(TrainRequest(made.prepare(batch(name)), bring))
        assert losses and len(seen) == 1
        assert seen[0]() is None
    finally:
        gc.enable()


def test_joined_states_of_different_lengths_end_with_masked_tokens() -> None:
    short = States(torch.ones(2, 3, 4), torch.tensor([[True, True, False], [True, True, True]]))
    long = States(torch.full((1, 5, 4), 2.0), torch.ones(1, 5, dtype=torch.bool))
    both = joined([short, long])
    assert both.tokens.shape == (3, 5, 4) and both.mask.sum(1).tolist() == [2, 3, 5]
    assert torch.equal(both.tokens[:2, :3], short.tokens) and torch.equal(both.tokens[2:], long.tokens)
    assert not both.mask[:2, 3:].any()
