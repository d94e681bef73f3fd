import torch

from dsvlp.layers.attention import Attention, AttentionBlock, FeedForward


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    return torch.randn(2, 5, 16), torch.randn(2, 3, 16), mask


def test_attention_is_the_mean_of_values_by_its_probabilities() -> None:
    states, context, mask = _inputs()
    attention = Attention(16, 4, 0.0)
    shares = attention.probabilities(states, context, mask)
    value = attention.value(context).unflatten(-1, (4, 4)).transpose(1, 2)
    expected = (shares @ value).transpose(1, 2).flatten(2)
    assert torch.allclose(attention(states, context, mask), expected, atol=1e-6)
    assert torch.allclose(shares.sum(-1), torch.ones(2, 4, 5))
    assert shares[0, :, :, 2].abs().max() == 0


def test_masked_keys_change_nothing() -> None:
    states, context, mask = _inputs()
    block = AttentionBlock(16, 4, 0.0)
    other = context.masked_fill(~mask[..., None], 7.0)
    assert torch.equal(block(states, context, mask), block(states, other, mask))


def test_published_parameter_counts_of_a_bert_layer() -> None:
    block, feed_forward = AttentionBlock(768, 12, 0.1), FeedForward(768, 3072, 0.1)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (block, feed_forward)]
    assert sizes[0] == 2_362_368 + 1_536
    assert sum(sizes) == 7_087_872
