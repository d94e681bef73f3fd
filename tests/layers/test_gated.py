import pytest
import torch

from dsvlp.layers.gated import GatedCrossAttention


def _layer(query_norm: bool = True, gate: float = 0.5) -> GatedCrossAttention:
    torch.manual_seed(0)
    layer = GatedCrossAttention(16, 2, 24, 0.0, query_norm)
    torch.nn.init.constant_(layer.gate, gate)
    return layer


def _states() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    return torch.randn(2, 7, 16), torch.randn(2, 5, 24), mask


def test_a_closed_gate_changes_no_bit_and_only_the_gate_gets_a_gradient():
    layer, (states, context, mask) = _layer(gate=0.0), _states()
    out = layer(states, context, mask)
    assert torch.equal(out, states)
    out.square().sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is not None and p.grad.any()} == {"gate"}


def test_keys_that_do_not_count_change_nothing():
    layer, (states, context, mask) = _layer(), _states()
    changed = torch.where(mask[..., None], context, 9.0)
    assert torch.equal(layer(states, context, mask), layer(states, changed, mask))
    assert not torch.allclose(layer(states, context), layer(states, changed))


def test_queries_do_not_know_their_place():
    """So cross-attention needs no windows: any cut of the queries gives the same."""
    layer, (states, context, mask) = _layer(), _states()
    order = torch.randperm(7)
    whole = layer(states, context, mask)
    assert torch.allclose(layer(states[:, order], context, mask), whole[:, order], atol=1e-6)


@pytest.mark.parametrize("query_norm", [True, False])
def test_the_probabilities_are_those_that_forward_mixes_by(query_norm: bool):
    layer, (states, context, mask) = _layer(query_norm), _states()
    seen = layer.probabilities(states, context, mask)
    assert torch.allclose(seen.sum(-1), torch.ones(2, 2, 7))
    value = layer.value(context).unflatten(-1, (2, -1)).transpose(1, 2)
    crossed = layer.output((seen @ value).transpose(1, 2).flatten(2))
    assert torch.allclose(layer(states, context, mask), states + 0.5 * crossed, atol=1e-6)


def test_under_autocast_the_states_keep_their_type():
    layer, (states, context, mask) = _layer(), _states()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(states.bfloat16(), context, mask).dtype == torch.bfloat16
        assert layer(states, context, mask).dtype == torch.float32
