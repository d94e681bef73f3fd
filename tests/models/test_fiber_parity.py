"""Our FIBER against the official one's numbers: every output of every mode, and the gradients."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsvlp.models.fiber_names import to_official, to_ours, why_dead
from dsvlp.objectives.mlm import MLMTargets
from dsvlp.passes import Passes
from dsvlp.types import Encoded
from tests.models.official import Ours, official, ours

OUTPUTS = (
    *("itc_image_tokens", "itc_text_tokens", "itc_image", "itc_text"),
    *("fused_text", "fused_image", "fused_cls", "itm_logits", "mlm_logits", "vqa_logits", "nlvr2_logits"),
    *("caption_image_embeds", "caption_text", "caption_logits"),
    *("itc_inbatch_loss", "itm_loss", "mlm_loss", "caption_loss"),
)
LOSSES = ("itc_inbatch_loss", "itm_loss", "mlm_loss", "caption_loss")


@cache
def measured() -> dict[str, Tensor]:
    """Returns all outputs, with their graph."""
    theirs, mine = official(), ours()
    clean, masked = theirs.batch, theirs.masked
    model = mine.system.model
    itc, itm, mlm = (mine.system.objectives[name] for name in ("itc", "itm", "mlm"))
    passes = Passes(model, {"clean": clean, "masked": masked})
    _, targets = itc.prepare(clean)
    contrast = itc.begin(passes, targets)
    passes.ask("clean")
    passes.ask("masked")  # both fused passes run in one call
    out: dict[str, Tensor] = {}
    image, text = passes.unimodal_image("clean"), passes.unimodal_text("clean")
    out["itc_image_tokens"] = itc.image_transform(image.tokens)
    out["itc_text_tokens"] = itc.text_transform(text.tokens)
    out["itc_image"], out["itc_text"] = itc.embed_image(image), itc.embed_text(text)
    fused = passes.fused("clean")
    out["fused_text"], out["fused_image"], out["fused_cls"] = (
        fused.text.tokens,
        fused.image.tokens,
        fused.pooled,
    )
    out["itm_logits"], out["vqa_logits"] = itm.logits(fused), mine.vqa.score(fused)
    out["nlvr2_logits"] = _two_passes(mine, passes, fused)
    out["mlm_logits"] = mlm.decoder(mlm.transform(passes.fused("masked").text.tokens))
    tokens = model.caption_image(passes.image("clean"))
    words = model.caption(tokens, clean.text_ids, clean.text_mask)
    out["caption_image_embeds"], out["caption_text"] = tokens.tokens, words.tokens
    out["caption_logits"] = mlm.decoder(mlm.transform(words.tokens))
    losses = itc.loss(passes, targets, contrast), mlm.loss(passes, _hidden(theirs.inputs["text_labels_mlm"]))
    out["itc_inbatch_loss"], out["mlm_loss"] = (loss.sum / loss.count for loss in losses)
    out["itm_loss"] = F.cross_entropy(out["itm_logits"], torch.tensor([1, 0, 1]))
    following = clean.text_ids[:, 1:].masked_fill(~clean.text_mask[:, 1:], -100)
    out["caption_loss"] = F.cross_entropy(out["caption_logits"][:, :-1].flatten(0, 1), following.flatten())
    return out


def _two_passes(mine: Ours, passes: Passes, first: Encoded) -> Tensor:
    """Returns NLVR2's logits; the second image of each text is that of the batch in reverse order."""
    own = torch.arange(len(first.pooled))
    second = passes.ask("clean", torch.stack((own.flip(0), own), 1)).result()
    return mine.nlvr2.score(Encoded(pooled=torch.stack((first.pooled, second.pooled), 1).flatten(0, 1)))


def _hidden(labels: Tensor) -> MLMTargets:
    positions = (labels.flatten() >= 0).nonzero()[:, 0]
    weight = torch.ones(len(positions))
    return MLMTargets(weight.sum(), positions, labels.flatten()[positions], weight)


@cache
def gradients() -> dict[str, Tensor]:
    """Returns the gradient of the four losses' sum under the official names."""
    out = measured()
    mine = ours()
    named = {name: p for name, p in mine.system.named_parameters()}
    found = torch.autograd.grad(sum(out[name] for name in LOSSES), list(named.values()), allow_unused=True)
    given = {name: g for name, g in zip(named, found, strict=True) if g is not None}
    official_names = to_official(given, official().plan)
    return {name: g for name, g in official_names.items() if not name.startswith("rank_output.")}


def difference(found: Tensor, expected: Tensor) -> float:
    """Returns the largest absolute difference over the largest absolute value."""
    return float((found.detach() - expected).abs().max() / expected.abs().max())


def test_every_official_entry_has_its_place_and_every_weight_its_value():
    mine = ours()
    assert not mine.missing
    assert not mine.left_over


def test_the_weights_come_back_under_the_official_names_bit_for_bit():
    theirs = official()
    back = to_official(to_ours(theirs.weights, theirs.plan), theirs.plan)
    alive = {name for name in theirs.weights if why_dead(name, theirs.plan) is None}
    assert back.keys() == alive | {"rank_output.weight", "rank_output.bias"}
    assert all(torch.equal(back[name], theirs.weights[name]) for name in alive)
    assert torch.equal(back["rank_output.weight"][0], theirs.weights["itm_score.fc.weight"][1])


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_output_is_the_official_ones(name):
    assert difference(measured()[name], official().outputs[name]) <= 1e-5


def test_no_official_output_is_left_out():
    assert official().outputs.keys() == set(OUTPUTS)


def test_whole_gradients_are_the_official_ones():
    found = gradients()
    wrong = {name: difference(found[name], g) for name, g in official().gradients.items()}
    assert max(wrong.values()) <= 1e-4, wrong


def test_every_gradient_norm_is_the_official_one():
    """Softmax does not see a constant, so the gradient of text keys' biases is rounding noise in both.

    The official norms themselves, in float32, are up to 1.5e-4 off at norms below 1e-5 (measured
    against float64), hence a floor of 1e-5 of the largest.
    """
    found, expected = gradients(), official().gradient_norms
    expected = {name: norm for name, norm in expected.items() if norm is not None}
    assert found.keys() == expected.keys()
    largest = max(expected.values())
    wrong = {}
    for name, norm in expected.items():
        measured_norm = float(found[name].norm())
        if name.endswith(".self.key.bias"):
            assert max(norm, measured_norm) < 1e-6 * largest, name
        elif abs(measured_norm - norm) > 1e-4 * max(norm, 1e-5 * largest):
            wrong[name] = (measured_norm, norm)
    assert not wrong
