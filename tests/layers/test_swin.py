"""Window attention takes the faster of two forms, both give the same; drop path is timm's in law."""

import pytest
import torch
import torch.nn.functional as F

from dsvlp.layers import swin
from dsvlp.layers.swin import DropPath, MaskedWindowAttention


def attention() -> MaskedWindowAttention:
    torch.manual_seed(0)
    made = MaskedWindowAttention(32, 4, window_size=(4, 4))
    torch.nn.init.normal_(made.relative_position_bias_table)
    return made


def run(made: MaskedWindowAttention, shifted: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(1)
    windows = torch.randn(6, 16, 32)
    mask = torch.where(torch.rand(3, 16, 16) < 0.3, -100.0, 0.0) if shifted else None
    made.zero_grad()
    out = made(windows, mask)
    out.float().square().sum().backward()
    return out.detach(), [p.grad.clone() for p in made.parameters()]


@pytest.mark.parametrize("shifted", [False, True])
def test_the_plain_form_is_the_fused_one(monkeypatch, shifted: bool):
    made = attention()
    fused = run(made, shifted)
    monkeypatch.setattr(swin, "_fused_is_slower", lambda query: True)
    plain = run(made, shifted)
    for one, other in zip([fused[0], *fused[1]], [plain[0], *plain[1]], strict=True):
        assert torch.allclose(one, other, atol=1e-5 * float(one.abs().max()))


def test_the_plain_form_is_taken_on_a_cpu_in_bf16_with_gradients_alone(monkeypatch):
    made, windows = attention(), torch.randn(2, 16, 32)
    calls = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
    with torch.autocast("cpu", torch.bfloat16):
        low = made(windows)
        assert not calls
        with torch.no_grad():
            made(windows)
        assert len(calls) == 1
    full = made(windows)
    assert len(calls) == 2
    assert (low - full).abs().max() < 0.02 * full.abs().max()  # bf16 has 8 bits


def test_drop_path_drops_whole_rows_at_its_rate_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, branch = DropPath(0.25), torch.rand(4000, 2, 3) + 1
    out = drop(branch)
    kept = out.flatten(1).any(1)
    assert torch.allclose(out[kept], branch[kept] / 0.75) and not out[~kept].any()
    assert 0.72 < kept.float().mean() < 0.78
    assert drop.eval()(branch) is branch
    assert not drop.state_dict(), "the rate is the recipe's"
