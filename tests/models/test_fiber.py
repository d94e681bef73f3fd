from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dsvlp.vision  # noqa: F401  # isort: skip
from timm.layers import DropPath
from timm.models.swin_transformer import SwinTransformer
from transformers import RobertaModel

from dsvlp import system
from dsvlp.errors import RecipeError
from dsvlp.layers.swin import fused_block
from dsvlp.models.fiber import FIBER
from dsvlp.recipe import FIBERModel
from dsvlp.types import Batch, Encoded
from tests.batches import make_batch, make_facts, make_fiber_recipe

PLANS = {
    "recipe's": "[[3, 1, 1], [4, 0, 2], [4, 1, 3]]",
    "everywhere": "[[1, 0, 0], [2, 0, 1], [3, 0, 2], [4, 1, 3]]",
    "one pair in the middle": "[[3, 0, 1]]",
    "the end of a stage": "[[3, 1, 0]]",
    "the last of both": "[[4, 1, 3]]",
}


def _model(*overrides: str, gates: float | None = 0.5) -> FIBER:
    """Returns a tiny model whose every weight matters: gates open, norms and biases moved."""
    built = system.build(make_fiber_recipe(*overrides), make_facts()).model
    assert isinstance(built, FIBER)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in built.named_parameters():
            if gates is not None and name.endswith("gate"):
                p.fill_(gates)
            elif name.endswith(("bias", "bias_table")) or "norm" in name.lower():
                p.add_(0.1 * torch.randn(p.shape, generator=draw))
    return built


def _batch(pairs: int = 4) -> Batch:
    return make_batch(pairs=pairs, image_size=64, partners=False)


def _fused(model: FIBER, batch: Batch) -> Encoded:
    return model.fuse(model.encode_image(batch.images), model.encode_text(batch.text_ids, batch.text_mask))


def _swin(model: FIBER, table: FIBERModel) -> SwinTransformer:
    """Returns timm's own model of the recipe's sizes with the tower's weights."""
    theirs = SwinTransformer(
        img_size=table.image_size,
        patch_size=table.image.patch_size,
        num_classes=0,
        global_pool="",
        embed_dim=table.image.width,
        depths=table.image.depths,
        num_heads=table.image.heads,
        window_size=table.image.window_at(table.image_size),
        mlp_ratio=table.image.mlp_ratio,
    )
    theirs.load_state_dict(model.image.state_dict())
    return theirs.eval()


def _roberta(model: FIBER) -> RobertaModel:
    """Returns transformers' own model with the tower's weights."""
    theirs = RobertaModel(model.text.config, add_pooling_layer=False)
    theirs.load_state_dict(model.text.state_dict())
    return theirs.eval()


@contextmanager
def _without_norm(norm: nn.LayerNorm) -> Iterator[None]:
    """Makes a norm the identity."""
    handle = norm.register_forward_hook(lambda _module, inputs, _output: inputs[0])
    yield
    handle.remove()


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_unimodal_outputs_are_timms_and_transformers_own_whatever_the_gates(plan: str):
    made = make_fiber_recipe(f"model.fusion.plan={plan}")
    model, batch = _model(f"model.fusion.plan={plan}").eval(), _batch()
    image = model.finish_image(model.encode_image(batch.images)).tokens
    text = model.finish_text(model.encode_text(batch.text_ids, batch.text_mask)).tokens
    assert torch.allclose(image, _swin(model, made.model)(batch.images).flatten(1, 2), atol=1e-5)
    expected = _roberta(model)(batch.text_ids, batch.text_mask.long()).last_hidden_state
    assert torch.allclose(text[batch.text_mask], expected[batch.text_mask], atol=1e-5)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_with_gates_at_zero_fused_states_are_theirs_before_the_last_norms(plan: str):
    made = make_fiber_recipe(f"model.fusion.plan={plan}")
    model, batch = _model(f"model.fusion.plan={plan}", gates=0.0).eval(), _batch()
    fused = _fused(model, batch)
    swin, roberta = _swin(model, made.model), _roberta(model)
    with _without_norm(swin.norm), _without_norm(roberta.encoder.layer[-1].output.LayerNorm):
        image = swin(batch.images).flatten(1, 2)
        text = roberta(batch.text_ids, batch.text_mask.long()).last_hidden_state
    assert torch.allclose(fused.image.tokens, model.image_transform(image), atol=1e-5)
    real = batch.text_mask
    assert torch.allclose(fused.text.tokens[real], model.text_transform(text)[real], atol=1e-5)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_with_open_gates_each_stream_depends_on_the_other(plan: str):
    model, batch = _model(f"model.fusion.plan={plan}").eval(), _batch()
    own, other = _fused(model, batch), _fused(model, _rolled_texts(batch))
    crossed = _fused(model, _rolled_images(batch))
    assert not torch.allclose(own.image.tokens, other.image.tokens, atol=1e-3)
    assert not torch.allclose(own.text.tokens, crossed.text.tokens, atol=1e-3)
    assert own.pooled.shape == (4, 2 * model.width)


def _rolled_texts(batch: Batch) -> Batch:
    return Batch(
        **{**vars(batch), "text_ids": batch.text_ids.roll(1, 0), "text_mask": batch.text_mask.roll(1, 0)}
    )


def _rolled_images(batch: Batch) -> Batch:
    return Batch(**{**vars(batch), "images": batch.images.roll(1, 0)})


def test_both_streams_of_a_pair_read_the_other_as_it_was_before_the_pair():
    """Against a slow reference: the official attention window by window (specification 1.2 and 1.4)."""
    model, batch = _model("model.fusion.plan=[[3, 1, 3]]").eval(), _batch(3)
    image, text = model.encode_image(batch.images), model.encode_text(batch.text_ids, batch.text_mask)
    block, layer, pair = model.image.blocks[3], model.text.layers[3], model.fusion[0]
    grid = image.tokens.unflatten(1, block.input_resolution)
    expected_grid = _slow_image_block(block, pair.image, grid, text.tokens, text.mask)
    expected_text = _slow_text_layer(layer, pair.text, text.tokens, text.mask, image.tokens)
    found_grid, found_text = pair(block, layer, grid, text.tokens, text.mask, False)
    assert torch.allclose(found_grid, expected_grid, atol=1e-5)
    assert torch.allclose(found_text, expected_text, atol=1e-5)


def _slow_image_block(block: Any, cross: Any, grid: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    height, width = block.input_resolution
    side, shift = block.window_size[0], block.shift_size[0]
    normed = block.norm1(grid).roll((-shift, -shift), (1, 2))
    out = torch.empty_like(normed)
    for row in range(height // side):
        for column in range(width // side):
            place = (
                slice(None),
                slice(row * side, (row + 1) * side),
                slice(column * side, (column + 1) * side),
            )
            window = normed[place].flatten(1, 2)
            shifts = None if block.attn_mask is None else block.attn_mask[row * (width // side) + column]
            s = _slow_self_attention(block.attn, window, shifts)
            c = _slow_cross_attention(cross, cross.norm(s), text, mask)
            out[place] = (s + cross.gate * c).unflatten(1, (side, side))
    grid = grid + out.roll((shift, shift), (1, 2))
    return grid + block.mlp(block.norm2(grid))


def _slow_self_attention(attention: Any, window: Tensor, shifts: Tensor | None) -> Tensor:
    query, key, value = attention.qkv(window).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    scores = scores + attention.relative_position_bias_table[attention.relative_position_index].permute(
        2, 0, 1
    )
    if shifts is not None:
        scores = scores + shifts
    return attention.proj(torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2))


def _slow_cross_attention(cross: Any, query: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
    query, key, value = (
        linear(states).unflatten(-1, (cross.heads, -1))
        for linear, states in ((cross.query, query), (cross.key, context), (cross.value, context))
    )
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores - 10_000.0 * ~mask[:, None, None]
    return cross.output(torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2))


def _slow_text_layer(layer: Any, cross: Any, tokens: Tensor, mask: Tensor, image: Tensor) -> Tensor:
    attention = layer.attention
    s = attention.output.dense(attention.self(tokens, mask[:, None, None])[0])
    s = s + cross.gate * _slow_cross_attention(cross, s, image, None)
    h = attention.output.LayerNorm(s + tokens)
    return layer.output.dense(layer.intermediate(h)) + h


def test_the_query_norm_is_a_switch():
    with_norm, without = _model(), _model("model.fusion.image_query_norm=false")
    assert "fusion.0.image.norm.weight" in with_norm.state_dict()
    assert not any("image.norm" in name for name in without.state_dict() if name.startswith("fusion"))
    state = {name: p for name, p in with_norm.state_dict().items() if name in without.state_dict()}
    without.load_state_dict(state)
    batch = _batch()
    first, second = _fused(with_norm.eval(), batch), _fused(without.eval(), batch)
    assert not torch.allclose(first.image.tokens, second.image.tokens, atol=1e-3)


def test_padding_changes_no_state():
    model, batch = _model("model.captioning=true").eval(), _batch()
    ids = torch.cat((batch.text_ids, torch.zeros(4, 3, dtype=torch.long)), 1)
    mask = torch.cat((batch.text_mask, torch.zeros(4, 3, dtype=torch.bool)), 1)
    image = model.encode_image(batch.images)
    short, long = (
        model.fuse(image, model.encode_text(*text))
        for text in ((batch.text_ids, batch.text_mask), (ids, mask))
    )
    assert torch.allclose(short.image.tokens, long.image.tokens, atol=1e-5)
    assert torch.allclose(short.pooled, long.pooled, atol=1e-5)


def test_a_caption_never_looks_ahead_and_always_at_the_image():
    model, batch = _model("model.captioning=true").eval(), _batch()
    tokens = model.caption_image(model.encode_image(batch.images))
    mask = torch.ones_like(batch.text_mask)
    first = model.caption(tokens, batch.text_ids, mask).tokens
    changed = batch.text_ids.clone()
    changed[:, 5] = (changed[:, 5] - 5 + 7) % 35 + 5
    second = model.caption(tokens, changed, mask).tokens
    assert torch.allclose(first[:, :5], second[:, :5], atol=1e-6)
    assert not torch.allclose(first[:, 5], second[:, 5], atol=1e-3)
    other = model.caption_image(model.encode_image(batch.images.roll(1, 0)))
    assert not torch.allclose(first, model.caption(other, batch.text_ids, mask).tokens, atol=1e-3)


def test_only_stages_of_other_widths_get_a_caption_projection():
    model = _model("model.captioning=true", "model.fusion.plan=[[2, 0, 0], [3, 1, 1], [4, 0, 2]]")
    assert {k: tuple(p.weight.shape) for k, p in model.caption_projections.items()} == {
        "0": (32, 128),
        "1": (64, 128),
    }
    with pytest.raises(RecipeError, match="captioning"):
        plain = _model()
        plain.caption(plain.caption_image(plain.encode_image(_batch().images)), *_text(_batch()))


def _text(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.text_ids, batch.text_mask


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activation_checkpointing_changes_no_bit_with_dropout_and_drop_path(mode: str):
    overrides = ("model.text.dropout=0.1", "model.image.drop_path=0.3", "model.captioning=true")
    gradients = []
    for chosen in ("none", mode):
        model, batch = _model(*overrides).train(), _batch()
        model.set_activation_checkpointing(chosen)
        torch.manual_seed(3)
        image, text = model.encode_image(batch.images), model.encode_text(*_text(batch))
        fused = model.fuse(image, text)
        alone = model.finish_image(image).tokens.sum() + model.finish_text(text).tokens.square().sum()
        words = model.caption(model.caption_image(image), *_text(batch)).tokens
        (fused.pooled.sum() + fused.text.tokens.square().sum() + alone + words.square().sum()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][n], gradients[1][n]) for n in gradients[0])


def test_drop_path_drops_self_and_cross_attention_of_a_row_together():
    model, batch = _model("model.fusion.plan=[[3, 1, 3]]").train(), _batch(16)
    block, pair = model.image.blocks[3], model.fusion[0]
    block.drop_path1 = DropPath(0.5)
    torch.nn.init.zeros_(block.mlp.fc2.weight)
    torch.nn.init.zeros_(block.mlp.fc2.bias)
    text = model.encode_text(*_text(batch))
    grid = model.encode_image(batch.images).tokens.unflatten(1, block.input_resolution)
    added = fused_block(block, pair.image, grid, text.tokens, text.mask) - grid
    kept = added.flatten(1).abs().amax(1) > 0
    assert 0 < kept.sum() < 16
    block.eval()
    whole = fused_block(block, pair.image, grid, text.tokens, text.mask) - grid
    assert torch.allclose(added[kept], 2 * whole[kept], atol=1e-5)


def test_at_the_first_step_only_the_gates_of_the_fusion_get_a_gradient():
    model, batch = _model(gates=None), _batch()
    _fused(model, batch).pooled.square().sum().backward()
    moved = {name for name, p in model.fusion.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {f"{k}.{side}.gate" for k in range(3) for side in ("image", "text")}


def test_two_models_of_different_sizes_and_plans_live_in_one_process():
    small = _model("model.fusion.plan=[[2, 0, 0]]", "model.image.width=8", "model.image.heads=[1, 1, 2, 2]")
    large, batch = _model().eval(), _batch()
    before = _fused(large, batch).pooled
    _fused(small.train(), batch).pooled.sum().backward()
    assert torch.equal(_fused(large, batch).pooled, before)


def test_new_weights_have_the_papers_deviations_at_the_papers_width_and_gates_are_zero():
    model = system.build(make_fiber_recipe(), make_facts()).model
    for pair in model.fusion:
        assert not pair.image.gate.any() and not pair.text.gate.any()
        assert float(pair.image.query.weight.detach().std()) == pytest.approx(
            0.02 * (128 / 16) ** 0.5, rel=0.1
        )
        assert float(pair.text.query.weight.detach().std()) == pytest.approx(
            0.02 * (768 / 32) ** 0.5, rel=0.1
        )
        assert not pair.image.query.bias.any()


def test_images_of_another_size_are_refused_with_what_to_do():
    with pytest.raises(RecipeError, match="image_size=96"):
        _model().encode_image(torch.zeros(1, 3, 96, 96))


def test_words_attention_is_a_distribution_over_the_last_stages_cells():
    model, batch = _model().eval(), _batch(3)
    seen = model.cross_attention(model.encode_image(batch.images), model.encode_text(*_text(batch)))
    assert seen.shape == (3, 3, 2, 10, 4)
    assert torch.allclose(seen.sum(-1), torch.ones(3, 3, 2, 10))


def test_a_tokenizer_with_another_padding_id_is_refused():
    with pytest.raises(RecipeError, match="padding"):
        system.build(make_fiber_recipe("model.text.padding_id=1"), make_facts())


def test_bf16_autocast_stays_close_to_fp32_forward_and_backward():
    model, batch = _model("model.captioning=true").eval(), _batch()
    found = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            fused = _fused(model, batch)
            words = model.caption(model.caption_image(model.encode_image(batch.images)), *_text(batch)).tokens
        (fused.pooled.float().square().sum() + words.float().square().mean()).backward()
        found.append((fused.pooled.float(), model.fusion[0].image.query.weight.grad.clone()))
    (exact, gradient), (rounded, rounded_gradient) = found
    assert torch.allclose(exact, rounded, atol=0.05)
    assert float((gradient - rounded_gradient).norm() / gradient.norm()) < 0.1
