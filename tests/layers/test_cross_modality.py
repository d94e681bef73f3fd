import pytest
import torch

import dsvlp.vision  # noqa: F401  # isort: skip
from transformers import LxmertConfig
from transformers.models.lxmert.modeling_lxmert import LxmertXLayer

from dsvlp.layers.attention import AttentionBlock, FeedForward
from dsvlp.layers.cross_modality import CrossModalityLayer

WIDTH, HEADS, HIDDEN = 48, 4, 96


def _copy_attention(ours: AttentionBlock, attention: torch.nn.Module, output: torch.nn.Module) -> None:
    for name in ("query", "key", "value"):
        getattr(ours.attention, name).load_state_dict(getattr(attention, name).state_dict())
    ours.output.load_state_dict(output.dense.state_dict())
    ours.norm.load_state_dict(output.LayerNorm.state_dict())


def _copy_feed_forward(ours: FeedForward, inner: torch.nn.Module, output: torch.nn.Module) -> None:
    ours.inner.load_state_dict(inner.dense.state_dict())
    ours.output.load_state_dict(output.dense.state_dict())
    ours.norm.load_state_dict(output.LayerNorm.state_dict())


def _pair() -> tuple[CrossModalityLayer, LxmertXLayer]:
    torch.manual_seed(1)
    config = LxmertConfig(hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=HIDDEN)
    theirs = LxmertXLayer(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = CrossModalityLayer(WIDTH, HEADS, HIDDEN, 0.1, share=True).eval()
    _copy_attention(ours.cross[0], theirs.visual_attention.att, theirs.visual_attention.output)
    _copy_attention(ours.text_self, theirs.lang_self_att.self, theirs.lang_self_att.output)
    _copy_attention(ours.image_self, theirs.visn_self_att.self, theirs.visn_self_att.output)
    _copy_feed_forward(ours.text_feed_forward, theirs.lang_inter, theirs.lang_output)
    _copy_feed_forward(ours.image_feed_forward, theirs.visn_inter, theirs.visn_output)
    return ours, theirs


@pytest.mark.parametrize("image_padded", [False, True])
def test_agrees_with_the_lxmert_layer_of_transformers(image_padded: bool) -> None:
    ours, theirs = _pair()
    text, image = torch.randn(3, 7, WIDTH), torch.randn(3, 9, WIDTH)
    text_mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    image_mask = torch.arange(9) < (torch.tensor([[9], [5], [2]]) if image_padded else 9)
    image_mask = image_mask.expand(3, 9)
    additive = [(~m).float()[:, None, None] * torch.finfo(torch.float32).min for m in (text_mask, image_mask)]
    expected = theirs(text, additive[0], image, additive[1], output_attentions=True)
    found = ours(text, image, text_mask, image_mask if image_padded else None)
    for mine, other in zip(found, expected, strict=False):
        assert (mine - other).abs().max() < 1e-6 * other.abs().max()
    seen = ours.words_over_cells(text, image, image_mask)
    assert (seen - expected[2]).abs().max() < 1e-6


def test_both_directions_read_the_previous_layers_states() -> None:
    layer = CrossModalityLayer(WIDTH, HEADS, HIDDEN, 0.0, share=False)
    text, image = torch.randn(1, 4, WIDTH), torch.randn(1, 6, WIDTH)
    before = layer(text, image, None)[1]
    with torch.no_grad():
        for parameter in layer.cross[0].parameters():
            parameter.mul_(3)
    assert torch.equal(layer(text, image, None)[1], before)


def test_sharing_is_one_weight_set_less_and_lxmerts_size() -> None:
    shared, separate = (CrossModalityLayer(768, 12, 3072, 0.1, share) for share in (True, False))
    count = [sum(p.numel() for p in layer.parameters()) for layer in (shared, separate)]
    assert count[0] == 16_539_648  # "16.5 M a layer"
    assert count[1] - count[0] == 2_362_368 + 1_536
