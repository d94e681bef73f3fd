import torch

import dsvlp.vision  # noqa: F401  # isort: skip
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from dsvlp.layers.co_attention import CoAttentionLayer, CoAttentionStream

WIDTH, HEADS, HIDDEN = 32, 4, 64


def _copied(theirs: BertLayer) -> CoAttentionStream:
    """Returns our stream with the weights of BERT's own decoder layer, which METER is built of."""
    ours = CoAttentionStream(WIDTH, HEADS, HIDDEN, 0.1).eval()
    for block, attention in ((ours.attention, theirs.attention), (ours.cross, theirs.crossattention)):
        for name in ("query", "key", "value"):
            getattr(block.attention, name).load_state_dict(getattr(attention.self, name).state_dict())
        block.output.load_state_dict(attention.output.dense.state_dict())
        block.norm.load_state_dict(attention.output.LayerNorm.state_dict())
    ours.feed_forward.inner.load_state_dict(theirs.intermediate.dense.state_dict())
    ours.feed_forward.output.load_state_dict(theirs.output.dense.state_dict())
    ours.feed_forward.norm.load_state_dict(theirs.output.LayerNorm.state_dict())
    return ours


def test_a_stream_is_berts_layer_with_cross_attention():
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        is_decoder=True,
        add_cross_attention=True,
        attn_implementation="eager",
    )
    theirs = BertLayer(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    own, other = torch.randn(2, 5, WIDTH), torch.randn(2, 3, WIDTH)
    own_mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    other_mask = torch.tensor([[True] * 3, [True, False, True]])
    hidden = [-10_000.0 * ~mask[:, None, None] for mask in (own_mask, other_mask)]
    expected = theirs(own, hidden[0], encoder_hidden_states=other, encoder_attention_mask=hidden[1])
    found = _copied(theirs)(own, other, own_mask, other_mask)
    assert torch.allclose(found, expected[0] if isinstance(expected, tuple) else expected, atol=1e-5)


def test_both_streams_read_the_other_as_the_previous_layer_left_it():
    torch.manual_seed(0)
    layer = CoAttentionLayer(WIDTH, HEADS, HIDDEN, 0.0)
    text, image = torch.randn(2, 5, WIDTH), torch.randn(2, 3, WIDTH)
    masks = torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    words, cells = layer(text, image, *masks)
    assert torch.equal(words, layer.text(text, image, *masks))
    assert torch.equal(cells, layer.image(image, text, *reversed(masks)))
