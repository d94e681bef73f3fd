from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import dsvlp.vision  # noqa: F401  # isort: skip
from timm.models.swin_transformer import SwinTransformer

from dsvlp import config
from dsvlp.errors import RecipeError
from dsvlp.models.pretrained import resize_tables
from dsvlp.models.swin import SwinTower
from dsvlp.recipe import Swin

SIZES = {"width": 16, "depths": (2, 2), "heads": (2, 4)}


def _theirs(image_size: int = 32, window: int = 4, classes: int = 5) -> SwinTransformer:
    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=image_size,
        num_classes=classes,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=window,
    ).eval()
    for name, parameter in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def _ours(state: dict[str, Tensor], folder: Path, image_size: int = 32) -> SwinTower:
    path = folder / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    table = config.validate(Swin, {**SIZES, "weights": str(path)}, "test")
    return SwinTower.from_recipe(table, image_size, pretrained=True).eval()


def test_the_tower_is_timms_model_with_all_weights_but_the_classifiers(tmp_path: Path):
    theirs = _theirs()
    ours = _ours(theirs.state_dict(), tmp_path)
    images = torch.randn(3, 3, 32, 32)
    assert torch.allclose(ours(images), theirs.forward_features(images).flatten(1, 2), atol=1e-5)
    assert ours.state_dict().keys() == {k for k in theirs.state_dict() if not k.startswith("head")}


def test_gradients_are_timms_too(tmp_path: Path):
    theirs = _theirs()
    ours = _ours(theirs.state_dict(), tmp_path)
    images = torch.randn(2, 3, 32, 32)
    ours(images).square().sum().backward()
    theirs.forward_features(images).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = expected[name].grad
        assert torch.allclose(parameter.grad, gradient, atol=1e-5 * float(gradient.abs().max()) + 1e-6), name


def test_stepping_through_in_pieces_gives_the_whole(tmp_path: Path):
    ours, images = _ours(_theirs().state_dict(), tmp_path), torch.randn(2, 3, 32, 32)
    for cut in range(5):
        grid = ours.run(ours.embed(images), 0, cut)
        assert torch.equal(ours.finished(ours.run(grid, cut, 4)), ours(images))
    assert [ours.number(*place) for place in ((1, 0), (1, 1), (2, 0), (2, 1))] == [0, 1, 2, 3]


def test_files_of_swins_own_form_are_read(tmp_path: Path):
    theirs = _theirs(classes=0)
    state = {
        k.replace("layers.1.downsample", "layers.0.downsample"): v for k, v in theirs.state_dict().items()
    }
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(1)
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(1)
    images = torch.randn(2, 3, 32, 32)
    expected = theirs.forward_features(images).flatten(1, 2)
    assert torch.allclose(_ours(state, tmp_path)(images), expected, atol=1e-5)


def test_tables_of_other_windows_are_resized_bicubically(tmp_path: Path):
    theirs = _theirs()
    ours = _ours(theirs.state_dict(), tmp_path, image_size=48)
    assert ours.blocks[0].window_size == (6, 6)
    for k, block in enumerate(ours.blocks):
        table = theirs.layers[k // 2].blocks[k % 2].attn.relative_position_bias_table
        assert block.attn.relative_position_bias_table.shape == (11 * 11, table.shape[1])
        expected = torch.nn.functional.interpolate(
            table.T.unflatten(1, (7, 7))[None], size=(11, 11), mode="bicubic", align_corners=False
        )
        found = block.attn.relative_position_bias_table.T.unflatten(1, (11, 11))
        assert torch.allclose(found, expected[0], atol=1e-6)
    assert ours(torch.randn(1, 3, 48, 48)).shape == (1, 36, 32)


def test_tables_of_the_same_windows_and_other_entries_stay():
    state = {"a.relative_position_bias_table": torch.randn(49, 2), "b": torch.ones(2)}
    out = resize_tables(state, {"a.relative_position_bias_table": torch.zeros(49, 2), "b": torch.zeros(3)})
    assert all(torch.equal(out[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layers.0.blocks.1.attn.qkv.weight": None}, r"layers\.0\.blocks\.1\.attn\.qkv\.weight"),
        ({"layers.1.blocks.2.norm1.weight": torch.ones(32)}, r"layers\.1\.blocks\.2\.norm1"),
        ({"layers.0.blocks.0.attn.relative_position_bias_table": torch.ones(49, 3)}, r"\(49, 3\), ours"),
    ],
)
def test_missing_strange_and_misshapen_entries_are_named(
    tmp_path: Path, change: dict[str, Tensor | None], named: str
):
    state = {**_theirs().state_dict(), **change}
    with pytest.raises(RecipeError, match=named):
        _ours({k: v for k, v in state.items() if v is not None}, tmp_path)


def test_full_size_shapes_are_the_papers():
    with torch.device("meta"):
        tower = SwinTower.from_recipe(Swin(), 384, pretrained=False)
        images = torch.empty(2, 3, 384, 384)
    grid = tower.run(tower.embed(images), 0, tower.number(3, 14))
    assert grid.shape == (2, 24, 24, 512)
    assert tower.run(grid, tower.number(3, 14), tower.number(4, 0)).shape == (2, 12, 12, 1024)
    assert tower(images).shape == (2, 144, 1024)
    windows = {block.window_size[0] for block in tower.blocks}
    assert windows == {12}
    assert [block.shift_size[0] for block in tower.blocks] == [0, 6] * 11 + [0, 0]


def test_new_weights_are_timms_at_swin_base_and_keep_the_gain_at_other_widths():
    torch.manual_seed(0)
    tower = SwinTower(config.validate(Swin, {"width": 32, "depths": (1, 1), "heads": (1, 2)}, "test"), 32)
    assert float(tower.blocks[0].mlp.fc1.weight.detach().std()) == pytest.approx(0.04, rel=0.05)
    assert float(tower.blocks[1].attn.qkv.weight.detach().std()) == pytest.approx(0.04, rel=0.05)
    assert not tower.blocks[1].attn.qkv.bias.any()
