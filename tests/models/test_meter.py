import pytest
import torch

from dsvlp import config, system
from dsvlp.models.meter import METER
from dsvlp.recipe import METERModel
from dsvlp.types import Batch, Encoded
from tests.batches import make_batch, make_facts, make_meter_recipe


def _model(*overrides: str) -> METER:
    built = system.build(make_meter_recipe(*overrides), make_facts()).model
    assert isinstance(built, METER)
    return built


def _batch(pairs: int = 4) -> Batch:
    return make_batch(pairs=pairs, image_size=64, partners=False)


def _fused(model: METER, batch: Batch) -> Encoded:
    return model.fuse(model.encode_image(batch.images), model.encode_text(batch.text_ids, batch.text_mask))


def test_it_keeps_the_contract_of_fiber():
    model, batch = _model().eval(), _batch()
    image, text = model.encode_image(batch.images), model.encode_text(batch.text_ids, batch.text_mask)
    assert model.finish_image(image) is image and model.finish_text(text) is text
    assert image.tokens.shape == (4, 4, model.image_width) == (4, 4, 128)
    fused = model.fuse(image, text)
    assert fused.image.tokens.shape == (4, 4, model.width) == (4, 4, 32)
    assert fused.text.tokens.shape == (4, 10, 32)
    assert fused.pooled.shape == (4, model.pooled_width) == (4, 64)


def test_each_stream_depends_on_the_other():
    model, batch = _model().eval(), _batch()
    image, text = model.encode_image(batch.images), model.encode_text(batch.text_ids, batch.text_mask)
    own = model.fuse(image, text)
    other = model.fuse(image, model.encode_text(batch.text_ids.roll(1, 0), batch.text_mask.roll(1, 0)))
    assert not torch.allclose(own.image.tokens, other.image.tokens, atol=1e-3)


def test_the_text_pooler_reads_the_first_token_and_the_images_the_mean():
    model, batch = _model().eval(), _batch()
    fused = _fused(model, batch)
    text = torch.tanh(model.text_pooler.dense(fused.text.tokens[:, 0]))
    image = torch.tanh(model.image_pooler.dense(fused.image.tokens.mean(1)))
    assert torch.allclose(fused.pooled, torch.cat((text, image), 1), atol=1e-6)


def test_words_attention_is_a_distribution_over_image_tokens():
    model, batch = _model().eval(), _batch(3)
    seen = model.cross_attention(
        model.encode_image(batch.images), model.encode_text(batch.text_ids, batch.text_mask)
    )
    assert seen.shape == (2, 3, 2, 10, 4)
    assert torch.allclose(seen.sum(-1), torch.ones(2, 3, 2, 10))


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activation_checkpointing_changes_no_bit(mode: str):
    gradients = []
    for chosen in ("none", mode):
        model, batch = _model("model.text.dropout=0.1", "model.image.drop_path=0.3"), _batch()
        model.set_activation_checkpointing(chosen)
        torch.manual_seed(3)
        _fused(model, batch).pooled.sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][n], gradients[1][n]) for n in gradients[0])


def test_six_layers_at_full_size_have_the_estimated_parameters():
    table = config.validate(METERModel, {"system": "meter", "image_size": 384}, "test")
    with torch.device("meta"):
        model = METER.from_recipe(table)
    layers = sum(p.numel() for p in model.fusion.parameters()) / 1e6
    assert layers == pytest.approx(12 * 9.45, rel=1e-3)  # specification 5
    images = torch.empty(1, 3, 384, 384, device="meta")
    assert model.encode_image(images).tokens.shape == (1, 144, 1024)
