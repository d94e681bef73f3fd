"""Cutting a micro-batch's texts to its longest changes no loss, no gradient and no draw."""

from dataclasses import replace
from typing import TypeVar

import pytest
import torch

from dsvlp import recipe, system
from dsvlp.engine.texts import shortened
from dsvlp.errors import RecipeError
from dsvlp.system import TrainRequest
from dsvlp.types import Batch, Fetched
from tests.batches import PAD, make_batch, make_facts, make_fetched

SIZES = ["model.text.vocabulary=40", "model.text.max_length=20"]
Texts = TypeVar("Texts", Batch, Fetched)
FILL = {"text_ids": PAD, "text_mask": False, "special_mask": True}


def padded(batch: Texts, length: int) -> Texts:
    """Returns a batch whose texts are padded to `length`."""
    extra = (0, length - batch.text_ids.shape[1])
    pad = torch.nn.functional.pad
    return replace(
        batch, **{name: pad(getattr(batch, name), extra, value=fill) for name, fill in FILL.items()}
    )


@pytest.mark.parametrize("name", ["tiny_svl", "tiny_fiber"])
def test_losses_and_gradients_are_those_of_the_full_length(name: str):
    loaded = recipe.load(name, SIZES)
    made = system.build(loaded, make_facts()).double()
    batch = padded(make_batch(image_size=96, partners=recipe.swaps_texts(loaded)), 20)
    batch = replace(batch, images=batch.images.double())
    found = []
    for one in (batch, *shortened([batch])):
        made.zero_grad()
        prepared = made.prepare(one)
        losses = made(TrainRequest(prepared))
        sum(loss.sum for loss in losses.values()).backward()
        gradients = {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}
        found.append((prepared, {n: loss.sum.detach() for n, loss in losses.items()}, gradients))
    (full, losses, gradients), (cut, cut_losses, cut_gradients) = found
    mlm = loaded.objectives.mlm.view
    length = cut.views[mlm].text_ids.shape[1]
    assert length == 16 and full.views[mlm].text_ids.shape[1] == 20
    assert torch.equal(full.views[mlm].text_ids[:, :length], cut.views[mlm].text_ids)
    names = list(losses)
    assert torch.equal(full.counts(names), cut.counts(names))
    for name_, value in losses.items():
        # Sums over rows in another order: what is equal in exact arithmetic differs in the last bits.
        assert torch.allclose(value.double(), cut_losses[name_].double(), rtol=1e-6), name_
    top = max(g.abs().max() for g in gradients.values())
    for key, value in gradients.items():
        assert (value - cut_gradients[key]).abs().max() <= 1e-6 * top, key


def test_the_length_is_a_multiple_of_eight_that_holds_the_longest_text_and_never_grows():
    batch = make_batch(length=10)
    longest = int(batch.text_mask.sum(1).max())
    assert 2 < longest <= 10
    for length in (10, 16, 30):
        (cut,) = shortened([padded(batch, length)])
        assert cut.text_mask.shape[1] == min(length, 8 if longest <= 8 else 16)
        assert torch.equal(cut.text_mask.sum(1), batch.text_mask.sum(1))


def test_fetched_texts_have_the_length_of_the_micro_batchs_own():
    short, long = (padded(make_batch(length=n, seed=1), 40) for n in (6, 30))
    fetched, far = (padded(make_fetched(4, length=n), 40) for n in (6, 30))
    lengths = []
    for own, past in ((short, fetched), (long, fetched), (short, far)):
        (cut,) = shortened([replace(own, fetched=past)])
        lengths.append(cut.text_ids.shape[1])
        assert lengths[-1] == cut.fetched.text_ids.shape[1]
        assert torch.equal(cut.text_mask.sum(1), own.text_mask.sum(1))
        assert torch.equal(cut.fetched.text_mask.sum(1), past.text_mask.sum(1))
        assert torch.equal(cut.fetched.caption_ids, past.caption_ids)
    assert lengths[0] == 8 < min(lengths[1:])


def test_what_other_ranks_need_is_the_length():
    batches = [padded(make_batch(length=n), 40) for n in (6, 20)]
    asked = []

    def agree(lengths: list[int]) -> list[int]:
        asked.append(lengths)
        return [24, 32]

    assert [batch.text_ids.shape[1] for batch in shortened(batches, agree)] == [24, 32]
    assert asked == [[8, 24]]


def test_texts_that_come_within_the_step_are_refused():
    queue = ["objectives.itm.negatives=queue", "objectives.itc.queue=16", "engine.cut_texts=true"]
    recipe.load("tiny_fiber", queue)
    with pytest.raises(RecipeError, match=r"engine\.cut_texts=false"):
        recipe.load("tiny_fiber", [*queue, "objectives.itm.negatives_delay=0"])
