"""The checks at the end of SemVLP's specification, on a tiny model; its sizes at full size without memory."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dsvlp import config, system
from dsvlp.layers.attention import AttentionBlock
from dsvlp.models.semvlp import SemVLP
from dsvlp.passes import select
from dsvlp.recipe import SemVLPModel
from dsvlp.types import Batch, Encoded, Mode
from tests.batches import FEATURES, OBJECTS, make_facts, make_objects, make_semvlp_recipe

BASE = {"layers": 12, "width": 768, "heads": 12, "feed_forward": 3072}
MODES: tuple[Mode, ...] = ("single", "two", "halves")
each_mode = pytest.mark.parametrize("mode", MODES)


def _model(*overrides: str) -> SemVLP:
    built = system.build(make_semvlp_recipe(*overrides), make_facts()).model
    assert isinstance(built, SemVLP)
    with torch.no_grad():  # far from the start, where cross-attention and self-attention are alike
        torch.manual_seed(0)
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return built


def _fused(model: SemVLP, batch: Batch, mode: Mode | None = None) -> Encoded:
    image = model.encode_image(batch.images, batch.image_mask)
    return model.fuse(image, model.encode_text(batch.text_ids, batch.text_mask), mode)


def _batch(pairs: int = 4) -> Batch:
    return make_objects(pairs, partners=False)


def _full_size(**changes: Any) -> SemVLP:
    table = config.validate(SemVLPModel, {"system": "semvlp", "text": BASE, **changes}, "test")
    with torch.device("meta"):
        return SemVLP.from_recipe(table)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_full_size_has_the_specifications_parameters() -> None:
    model = _full_size()
    assert _count(model.text) == 23_837_184 + 12 * 7_087_872
    assert _count(model.cross) == 6 * 2_363_904 == 14_183_424  # M7b: 14.2 M
    assert _count(model.objects) == 2052 * 768 + 768 + 2 * 768 + 768
    assert _count(_full_size(cross_from=0).cross) == 12 * 2_363_904


def test_100_objects_behind_img_and_20_words_make_121_tokens() -> None:
    model = _full_size()
    image = model.encode_image(torch.empty(2, 100, 2052, dtype=torch.float16, device="meta"))
    assert image.tokens.shape == (2, 101, 768) and image.mask.shape == (2, 101)
    text = model.encode_text(
        torch.empty(2, 20, dtype=torch.long, device="meta"), torch.ones(2, 20, dtype=bool, device="meta")
    )
    fused = model.fuse(image, text, "halves")
    assert fused.image.tokens.shape == (2, 101, 768) and fused.text.tokens.shape == (2, 20, 768)
    assert fused.pooled.shape == (2, model.pooled_width)


def test_in_two_streams_the_text_does_not_see_the_image_and_in_one_it_does() -> None:
    model, batch, other = _model().eval(), _batch(), make_objects(4, partners=False, seed=9)
    for mode, same in (("two", True), ("single", False)):
        text = model.encode_text(batch.text_ids, batch.text_mask)
        first, second = (
            model.fuse(model.encode_image(one.images, one.image_mask), text, mode) for one in (batch, other)
        )
        assert torch.equal(first.text.tokens, second.text.tokens) is same
        assert not torch.allclose(first.image.tokens, second.image.tokens, atol=1e-3)


@each_mode
def test_the_objects_see_the_text(mode: Mode) -> None:
    model, batch = _model().eval(), _batch()
    image = model.encode_image(batch.images, batch.image_mask)
    ids, mask = batch.text_ids, batch.text_mask
    texts = (model.encode_text(ids, mask), model.encode_text(ids.roll(2, 0), mask.roll(2, 0)))
    first, second = (model.fuse(image, text, mode) for text in texts)
    assert not torch.isclose(first.image.tokens, second.image.tokens, atol=1e-3).all(2).all(1).any()
    assert not torch.isclose(first.pooled, second.pooled, atol=1e-3).all(1).any()


def test_text_and_image_go_through_the_same_storage() -> None:
    model, batch = _model().eval(), _batch()
    seen: list[tuple[int, int]] = []  # (storage of the weight, tokens that went through)
    layer = model.text.encoder.layer[2]  # above cross_from: taken apart for the image
    for part in (layer.attention.self.query, layer.intermediate.dense):
        part.register_forward_hook(
            lambda part, inputs, _: seen.append((part.weight.data_ptr(), inputs[0].shape[1]))
        )
    _fused(model, batch, "two")
    for storage in dict(seen):
        assert [length for found, length in seen if found == storage] == [10, 1 + OBJECTS]
    assert len(dict(seen)) == 2
    storages = [parameter.data_ptr() for parameter in model.parameters()]
    assert len(storages) == len(set(storages))


def test_cross_attention_has_no_gradient_in_one_stream_and_all_parameters_have_one_in_two() -> None:
    for mode in ("single", "two"):
        model = _model()
        fused = _fused(model, _batch(), mode)
        (fused.image.tokens.sin().sum() + fused.text.tokens.sin().sum()).backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        cross = {name for name, _ in model.named_parameters() if name.startswith("cross.")}
        assert without == (cross if mode == "single" else set())


def test_halves_read_even_places_in_one_stream_and_odd_ones_in_two() -> None:
    model, batch = _model().eval(), _batch(6)
    halves, single, two = (_fused(model, batch, mode) for mode in ("halves", "single", "two"))
    for name in ("image", "text"):
        found, first, second = (getattr(one, name).tokens for one in (halves, single, two))
        assert torch.allclose(found[0::2], first[0::2], atol=1e-5)
        assert torch.allclose(found[1::2], second[1::2], atol=1e-5)
    assert torch.allclose(halves.pooled[0::2], single.text.tokens[0::2, 0], atol=1e-5)
    assert torch.allclose(halves.pooled[1::2], two.image.tokens[1::2, 0], atol=1e-5)
    assert not torch.allclose(single.pooled, two.pooled, atol=1e-2)


@each_mode
def test_padded_words_and_absent_objects_change_nothing(mode: Mode) -> None:
    model, batch = _model().eval(), _batch()
    short = _fused(model, batch, mode)
    absent = torch.full((4, 3, FEATURES + 4), 7.0, dtype=torch.float16)
    long = _fused(
        model,
        replace(
            batch,
            images=torch.cat((batch.images, absent), 1),
            image_mask=torch.cat((batch.image_mask, torch.zeros(4, 3, dtype=torch.bool)), 1),
            text_ids=torch.cat((batch.text_ids, torch.full((4, 4), 9)), 1),
            text_mask=torch.cat((batch.text_mask, torch.zeros(4, 4, dtype=torch.bool)), 1),
        ),
        mode,
    )
    assert torch.allclose(short.pooled, long.pooled, atol=1e-5)
    there = torch.nn.functional.pad(batch.image_mask, (1, 0), value=True)
    assert torch.allclose(short.image.tokens[there], long.image.tokens[:, : 1 + OBJECTS][there], atol=1e-5)
    assert torch.allclose(
        short.text.tokens[batch.text_mask], long.text.tokens[:, :10][batch.text_mask], atol=1e-5
    )


@each_mode
def test_a_pairs_states_do_not_depend_on_the_others(mode: Mode) -> None:
    model, batch = _model().eval(), _batch(6)
    image = model.encode_image(batch.images, batch.image_mask)
    text = model.encode_text(batch.text_ids, batch.text_mask)
    every = model.fuse(image, text, mode)
    order = torch.tensor([4, 3, 2, 1, 0, 5])  # even places stay even
    turned = model.fuse(select(image, order), select(text, order), mode)
    assert torch.allclose(every.pooled[order], turned.pooled, atol=1e-5)
    assert torch.allclose(every.image.tokens[order], turned.image.tokens, atol=1e-5)


def test_without_a_mode_the_recipes_inference_decides() -> None:
    batch = _batch()
    for mode in ("single", "two"):
        model = _model(f"model.inference={mode}").eval()
        assert torch.equal(_fused(model, batch).pooled, _fused(model, batch, mode).pooled)


def test_cross_attention_starts_as_its_layers_self_attention_or_drawn() -> None:
    for start, same in (("copy", True), ("random", False)):
        model = system.build(make_semvlp_recipe(f"model.cross_start={start}"), make_facts()).model
        for layer, cross in zip(model.text.encoder.layer[1:], model.cross, strict=True):
            own, copied = layer.attention, cross.attention
            assert torch.equal(copied.query.weight, own.self.query.weight) is same
            assert torch.equal(copied.value.weight, own.self.value.weight) is same
            assert torch.equal(cross.output.weight, own.output.dense.weight) is same
            assert cross.output.weight.data_ptr() != own.output.dense.weight.data_ptr()
        states, mask = torch.randn(2, 4, 32), torch.ones(2, 4, dtype=torch.bool)
        ours, theirs = (
            AttentionBlock.forward(cross, states, states, mask),
            own(states, mask[:, None, None])[0],
        )
        assert torch.allclose(ours, theirs, atol=1e-5) is same


def test_objects_are_projected_with_their_boxes_and_carry_the_second_segment() -> None:
    model, batch = _model().eval(), _batch()
    parts, project = model.objects, model.objects.project
    segment = model.text.embeddings.token_type_embeddings.weight[1]
    tokens = model.encode_image(batch.images, batch.image_mask).tokens
    projected = batch.images.float() @ project.weight.T + project.bias
    assert torch.allclose(tokens[:, 1:], parts.norm(projected + segment), atol=1e-5)
    assert torch.allclose(tokens[:, 0], parts.norm(parts.image + segment).expand(4, -1), atol=1e-5)


@pytest.mark.parametrize("fuse", ["concat", "avg_ln"])
def test_normed_features_tell_nothing_of_their_mean_and_size_and_boxes_stay(fuse: str) -> None:
    settings = (f"model.box_fuse={fuse}", "model.norm_features=true")
    model, batch = _model(*settings).eval(), _batch()
    plain = _model(settings[0]).eval()
    assert _count(model) == _count(plain)

    def tokens(seen: SemVLP, factor: float, offset: float, shift: float = 0.0) -> torch.Tensor:
        objects = batch.images.double()
        features, boxes = objects[..., :FEATURES] * factor + offset, objects[..., FEATURES:] + shift
        return seen.encode_image(torch.cat((features, boxes), -1)).tokens

    assert torch.allclose(tokens(model, 1, 0), tokens(model, 3, 7), atol=1e-4)
    assert not torch.allclose(tokens(plain, 1, 0), tokens(plain, 3, 7), atol=1e-2)
    assert not torch.allclose(tokens(model, 1, 0), tokens(model, 1, 0, 0.5), atol=1e-3)
    nothing = torch.zeros_like(batch.images)
    assert model.encode_image(nothing).tokens.isfinite().all()


def test_lxmerts_objects_are_means_of_normed_feature_and_box() -> None:
    model, batch = _model("model.box_fuse=avg_ln").eval(), _batch()
    project, objects = model.objects.project, batch.images.float()
    first = project.feature_norm(project.feature(objects[..., :FEATURES]))
    second = project.box_norm(project.box(objects[..., FEATURES:]))
    segment = model.text.embeddings.token_type_embeddings.weight[1]
    expected = model.objects.norm((first + second) / 2 + segment)
    assert torch.allclose(model.encode_image(batch.images).tokens[:, 1:], expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activation_checkpointing_changes_no_bit(mode: str) -> None:
    gradients = []
    for chosen in ("none", mode):
        model, batch = _model("model.text.dropout=0.1"), _batch()
        model.set_activation_checkpointing(chosen)
        torch.manual_seed(3)
        fused = _fused(model, batch, "halves")
        (fused.pooled.sum() + fused.text.tokens.sin().sum()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert all(torch.equal(gradients[0][n], gradients[1][n]) for n in gradients[0])


def test_a_step_runs_the_same_modules_in_the_same_order_whatever_the_pairs_are() -> None:
    orders = []
    for seed in (0, 1):
        built, order = system.build(make_semvlp_recipe(), make_facts()), []
        for name, module in built.named_modules():
            module.register_forward_hook(lambda *_, name=name, order=order: order.append(name))
        built(system.TrainRequest(built.prepare(make_objects(seed=seed))))
        orders.append(order)
    assert orders[0] == orders[1] and "model.cross.1.attention" in orders[0]


def test_every_pair_mismatched_leaves_only_itm() -> None:
    built, batch = system.build(make_semvlp_recipe(), make_facts()), make_objects()
    wrong = replace(batch, matched=torch.zeros(8, dtype=torch.bool))
    losses = built(system.TrainRequest(built.prepare(wrong)))
    assert losses.keys() == {"itm", "mlm", "mop", "qa"}
    for name, loss in losses.items():
        assert (float(loss.sum.detach()) > 0, float(loss.count) > 0) == (name == "itm",) * 2
    sum(loss.sum for loss in losses.values()).backward()
    tied = {id(parameter) for parameter in built.model.parameters()}
    for name, head in built.objectives.items():
        own = [p.grad for p in head.parameters() if id(p) not in tied]
        moved = [grad is not None and bool(grad.any()) for grad in own]
        assert any(moved) == (name == "itm"), name


def test_losses_are_told_apart_by_mode() -> None:
    built, batch = system.build(make_semvlp_recipe(), make_facts()), make_objects(12)
    for name, loss in built(system.TrainRequest(built.prepare(batch))).items():
        parts = [loss.metrics[f"loss_{mode}"] for mode in ("single", "two")]
        assert all(float(count) > 0 for _, count in parts), name
        assert float(sum(part for part, _ in parts)) == pytest.approx(float(loss.sum.detach()), rel=1e-5)
        assert float(sum(count for _, count in parts)) == pytest.approx(float(loss.count)), name
