"""Cutting a micro-batch's texts to its longest changes no loss, no gradient and no draw."""

from dataclasses import replace

import pytest
import torch

from dsvlp import recipe, system
from dsvlp.engine.texts import shortened
from dsvlp.errors import RecipeError
from dsvlp.system import TrainRequest
from dsvlp.types import Batch
from tests.batches import PAD, make_batch, make_facts

SIZES = ["model.text.vocabulary=40", "model.text.max_length=20"]


def padded(batch: Batch, length: int) -> Batch:
    """Returns a batch whose texts are padded to `length`."""
    extra = (0, length - batch.text_ids.shape[1])
    pad = torch.nn.functional.pad
    return replace(
        batch,
        text_ids=pad(batch.text_ids, extra, value=PAD),
        text_mask=pad(batch.text_mask, extra, value=False),
        special_mask=pad(batch.special_mask, extra, value=True),
    )


@pytest.mark.parametrize("name", ["tiny_svl", "tiny_fiber"])
def test_losses_and_gradients_are_those_of_the_full_length(name: str):
    loaded = recipe.load(name, SIZES)
    made = system.build(loaded, make_facts()).double()
    batch = padded(make_batch(image_size=96, partners=recipe.swaps_texts(loaded)), 20)
    batch = replace(batch, images=batch.images.double())
    found = []
    for one in (batch, shortened(batch)):
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
        cut = shortened(padded(batch, length)).text_mask
        assert cut.shape[1] == min(length, 8 if longest <= 8 else 16)
        assert torch.equal(cut.sum(1), batch.text_mask.sum(1))


def test_negatives_that_join_texts_of_several_micro_batches_are_refused():
    gathered = ["objectives.itm.negatives=gathered", "batch.contrastive_pairs=8", "batch.micro_pairs=false"]
    with pytest.raises(RecipeError, match=r"engine\.cut_texts=false"):
        recipe.load("tiny_fiber", [*gathered, "engine.cut_texts=true"])
