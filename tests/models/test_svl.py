from typing import Any

import pytest
import torch
from torch import nn

from dsvlp import config, system
from dsvlp.models.svl import SVL
from dsvlp.recipe import SVLModel
from dsvlp.types import States
from tests.batches import make_batch, make_facts, make_recipe

TEXT = {"layers": 9, "width": 768, "heads": 12, "feed_forward": 3072}
VIT = {"kind": "vit", "layers": 9, "patch_size": 32, "width": 768, "heads": 12}


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _full_size(**changes: Any) -> SVL:
    """Returns the paper's model without memory."""
    tables = {"system": "svl", "image_size": 384, "image": VIT, "text": TEXT, **changes}
    with torch.device("meta"):
        return SVL.from_recipe(config.validate(SVLModel, tables, "test"))


def _tiny_resnet(segmentation: str, batch_norm: str = "frozen") -> SVL:
    tables = {
        "system": "svl",
        "image_size": 64,
        "image": {
            "kind": "resnet",
            "name": "resnet10t",
            "segmentation": segmentation,
            "batch_norm": batch_norm,
        },
        "text": {"layers": 1, "width": 32, "heads": 2, "feed_forward": 64, "vocabulary": 40},
        "cross_layers": 1,
    }
    torch.manual_seed(0)
    return SVL.from_recipe(config.validate(SVLModel, tables, "test"))


def test_the_full_size_model_has_the_published_parameter_counts() -> None:
    model = _full_size()
    assert _count(model.text.embeddings) == 23_837_184
    assert _count(model.text.encoder.layer[0]) == 7_087_872
    assert _count(model.text) == 23_837_184 + 9 * 7_087_872
    assert _count(model.cross) == 5 * 16_539_648
    assert 12 * 7_087_872 == 85_054_464


def test_the_resnet_trunk_has_the_published_parameter_count() -> None:
    model = _full_size(image={"kind": "resnet", "name": "resnet50"})
    assert _count(model.image.trunk) == 23_508_032


def test_full_size_shapes_are_the_papers() -> None:
    model = _full_size()
    states = model.encode_image(torch.empty(2, 3, 384, 384, device="meta"))
    assert states.tokens.shape == (2, 144, 768)
    assert states.maps[0].shape == (2, 768, 12, 12)
    larger = model.encode_image(torch.empty(1, 3, 576, 576, device="meta"))
    assert larger.tokens.shape == (1, 324, 768)


def test_two_models_of_different_sizes_coexist() -> None:
    small = system.build(make_recipe("model.cross_layers=1", "model.text.layers=1"), make_facts())
    large = system.build(make_recipe("model.image.width=48", "model.text.width=48"), make_facts())
    for built in (small, large, small):
        batch = make_batch()
        losses = built(system.TrainRequest(built.prepare(batch)))
        assert all(torch.isfinite(loss.sum) for loss in losses.values())


def test_the_same_seed_builds_the_same_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = system.build(make_recipe(), make_facts())
    assert torch.equal(torch.rand(1), expected)
    second = system.build(make_recipe(), make_facts())
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_words_attention_is_a_distribution_over_image_tokens() -> None:
    model = system.build(make_recipe(), make_facts()).model.eval()
    batch = make_batch(pairs=3, partners=False)
    image, text = model.encode_image(batch.images), model.encode_text(batch.text_ids, batch.text_mask)
    seen = model.cross_attention(image, text)
    assert seen.shape == (2, 3, 2, 10, 16)
    assert torch.allclose(seen.sum(-1), torch.ones(2, 3, 2, 10))


def test_queries_replace_the_grid_and_the_map_stays() -> None:
    model = system.build(make_recipe(objectives=("itm", "spl")), make_facts()).model
    states = model.encode_image(torch.randn(3, 3, 32, 32))
    assert states.tokens.shape == (3, 4, 32)
    assert states.mask.shape == (3, 4)
    assert states.maps[-1].shape == (3, 32, 4, 4)


@pytest.mark.parametrize(
    ("segmentation", "shapes"),
    [
        ("upsample", [(32, 2, 2)]),
        ("dilate5", [(32, 4, 4), (32, 2, 2)]),
        ("stage4", [(256, 4, 4), (32, 2, 2)]),
    ],
)
def test_the_resnet_gives_stride_32_tokens_and_the_chosen_map(segmentation: str, shapes: list) -> None:
    model = _tiny_resnet(segmentation)
    states = model.encode_image(torch.randn(2, 3, 64, 64))
    assert states.tokens.shape == (2, 4, 32)
    assert [tuple(m.shape[1:]) for m in states.maps] == shapes
    assert model.map_width == shapes[0][0]
    assert torch.equal(states.maps[-1].flatten(2).transpose(1, 2), states.tokens)


def test_frozen_statistics_stay_and_trained_ones_move_once_under_recomputation() -> None:
    images = torch.randn(2, 3, 64, 64)

    def after(batch_norm: str, mode: str) -> dict[str, torch.Tensor]:
        model = _tiny_resnet("upsample", batch_norm).train()
        model.set_activation_checkpointing(mode)
        model.encode_image(images).tokens.sum().backward()
        return {k: v for k, v in model.image.trunk.state_dict().items() if "running" in k}

    frozen, once, recomputed = after("frozen", "none"), after("train", "none"), after("train", "full")
    assert all(v.unique().numel() == 1 for v in frozen.values())
    assert any(not torch.equal(once[k], frozen[k]) for k in once)
    assert all(torch.equal(once[k], recomputed[k]) for k in once)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activation_checkpointing_changes_no_bit_with_dropout(mode: str) -> None:
    gradients = []
    for chosen in ("none", mode):
        built = system.build(make_recipe("model.text.dropout=0.1"), make_facts())
        built.model.set_activation_checkpointing(chosen)
        torch.manual_seed(3)
        losses = built(system.TrainRequest(built.prepare(make_batch())))
        torch.stack([loss.sum for loss in losses.values()]).sum().backward()
        gradients.append({n: p.grad for n, p in built.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][n], gradients[1][n]) for n in gradients[0])


def test_the_tied_decoder_is_one_parameter_under_the_models_name() -> None:
    built = system.build(make_recipe(), make_facts())
    names = [n for n, p in built.named_parameters() if p is built.objectives["mlm"].decoder.weight]
    assert names == ["model.text.embeddings.word_embeddings.weight"]


def test_cached_states_give_the_scores_of_the_joint_pass() -> None:
    built = system.build(make_recipe(), make_facts()).eval()
    batch = make_batch(partners=False)
    image = built(system.ImageRequest(batch.images))
    text = built(system.TextRequest(batch.text_ids, batch.text_mask))
    _, scores = built(system.MatchRequest(image, text))
    rows = torch.tensor([3, 0])
    _, some = built(
        system.MatchRequest(
            States(image.tokens[rows], image.mask[rows]), States(text.tokens[rows], text.mask[rows])
        )
    )
    assert torch.allclose(scores[rows], some, atol=1e-6)
