import pytest
import torch
from torch import Tensor, nn

from dsvlp.layers.recompute import Mode, run_block


def _stack() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(
        nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Dropout(0.5), nn.Linear(32, 8))
        for _ in range(4)
    )


def _run(mode: Mode) -> tuple[nn.ModuleList, Tensor, int]:
    """Returns the stack after one backward, its output, and the bytes that forward kept."""
    stack, kept = _stack(), 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    torch.manual_seed(1)
    states = torch.randn(64, 8)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for index, block in enumerate(stack):
            states = run_block(block, index, mode, states)
    forward_only = kept
    states.square().sum().backward()
    return stack, states, forward_only


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputation_changes_no_bit_of_output_gradient_or_statistics(mode: Mode) -> None:
    plain, output, _ = _run("none")
    stack, again, _ = _run(mode)
    assert torch.equal(output, again)
    for (name, p), q in zip(plain.named_parameters(), stack.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    for (name, a), b in zip(plain.named_buffers(), stack.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_selective_keeps_half_and_full_keeps_almost_nothing() -> None:
    none, selective, full = (_run(mode)[2] for mode in ("none", "selective", "full"))
    assert full < 0.2 * none
    assert 0.4 * none < selective < 0.6 * none


def test_nothing_is_recomputed_without_gradient() -> None:
    calls = 0

    class Count(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return x

    with torch.no_grad():
        run_block(Count(), 0, "full", torch.ones(1))
    assert calls == 1
