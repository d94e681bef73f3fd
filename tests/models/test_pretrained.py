from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import dsvlp.vision  # noqa: F401  # isort: skip
import timm
from timm.layers import resample_abs_pos_embed
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from transformers import BertConfig, BertForPreTraining, RobertaConfig, RobertaForMaskedLM

from dsvlp import config, recipe, system
from dsvlp.errors import RecipeError
from dsvlp.models import pretrained
from dsvlp.models.bert import BERTTower
from dsvlp.models.cnn import CNN
from dsvlp.models.resnet import ResNetTower
from dsvlp.models.swin import SwinTower
from dsvlp.models.vit import ViTTower
from dsvlp.recipe import BERT, ResNet, Swin, ViT
from tests.batches import make_facts, make_fiber_recipe

SIZES = {"width": 32, "heads": 2}


def _save(folder: Path, state: dict[str, Tensor]) -> str:
    path = folder / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return str(path)


def _published_vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=5
    ).eval()


def _vit(weights: str, image_size: int = 32, layers: int = 3) -> ViTTower:
    tables = {"kind": "vit", "layers": layers, "patch_size": 8, "weights": weights, **SIZES}
    return ViTTower.from_recipe(config.validate(ViT, tables, "test"), image_size, pretrained=True)


def test_vit_takes_the_first_blocks_the_final_norm_and_the_grids_positions(tmp_path: Path) -> None:
    theirs = _published_vit()
    ours = _vit(_save(tmp_path, theirs.state_dict()))
    assert ours.state_dict().keys() == {
        k for k in theirs.state_dict() if not k.startswith(("head.", "blocks.3.")) and k != "cls_token"
    }
    images = torch.randn(2, 3, 32, 32)
    tokens = theirs.patch_embed(images) + theirs.pos_embed[:, 1:]
    expected = theirs.norm(theirs.blocks[:3](tokens))
    assert torch.allclose(ours(images)[0], expected, atol=1e-5)


def test_vit_positions_are_interpolated_to_the_recipes_grid(tmp_path: Path) -> None:
    theirs = _published_vit()
    ours = _vit(_save(tmp_path, theirs.state_dict()), image_size=48)
    expected = resample_abs_pos_embed(theirs.pos_embed[:, 1:], [6, 6], [4, 4], num_prefix_tokens=0)
    assert torch.allclose(ours.pos_embed, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"blocks.1.attn.qkv.weight": None}, "blocks.1.attn.qkv.weight"),
        ({"dist_token": torch.zeros(1, 1, 32)}, "dist_token"),
        ({"norm.weight": torch.zeros(31)}, "norm.weight"),
    ],
)
def test_missing_strange_and_misshapen_keys_are_named(
    tmp_path: Path, change: dict[str, Tensor | None], named: str
) -> None:
    state = {**_published_vit().state_dict(), **change}
    path = _save(tmp_path, {k: v for k, v in state.items() if v is not None})
    with pytest.raises(RecipeError, match=named.replace(".", r"\.")):
        _vit(path)


def test_more_layers_than_published_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"lack .*blocks\.4"):
        _vit(_save(tmp_path, _published_vit().state_dict()), layers=5)


def test_weights_that_are_neither_file_nor_model_are_refused() -> None:
    with pytest.raises(RecipeError, match="neither a file nor a model"):
        _vit("vit_basis_patch32_384")


def test_resnet_takes_all_but_the_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("resnet10t").eval()
    path = _save(tmp_path, theirs.state_dict())
    table = config.validate(ResNet, {"kind": "resnet", "name": "resnet10t", "weights": path}, "test")
    ours = ResNetTower.from_recipe(table, 64, 32, pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.allclose(ours._stages(images)[1], theirs.forward_features(images), atol=1e-5)


def test_another_trunk_than_a_resnet_is_refused() -> None:
    for name in ("vit_tiny_patch16_224", "resnet5"):
        table = config.validate(ResNet, {"kind": "resnet", "name": name}, "test")
        with pytest.raises(RecipeError, match=name):
            ResNetTower.from_recipe(table, 64, 32, pretrained=False)


def _published_bert(folder: Path, **changes: int) -> nn.Module:
    sizes = {
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    torch.manual_seed(0)
    model = BertForPreTraining(BertConfig(**{**sizes, **changes})).eval()
    model.save_pretrained(folder)
    return model


def _bert(folder: Path, layers: int = 3) -> BERTTower:
    tables = {"layers": layers, "feed_forward": 64, "vocabulary": 40, "weights": str(folder), **SIZES}
    return BERTTower.from_recipe(config.validate(BERT, tables, "test"), pretrained=True)


def test_bert_takes_the_first_layers_and_drops_pooler_and_heads(tmp_path: Path) -> None:
    theirs = _published_bert(tmp_path)
    ours = _bert(tmp_path).eval()
    ids = torch.randint(5, 40, (2, 7))
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    expected = theirs.bert(ids, mask.long(), output_hidden_states=True).hidden_states[3]
    found = ours(ids, mask)
    assert torch.allclose(found[mask], expected[mask], atol=1e-5)
    assert not any("pooler" in name for name in ours.state_dict())


def test_bert_of_other_sizes_is_refused_by_name(tmp_path: Path) -> None:
    _published_bert(tmp_path, vocab_size=41)
    with pytest.raises(RecipeError, match="vocab_size 41, the recipe's 40"):
        _bert(tmp_path)


def test_bert_with_too_few_layers_is_refused(tmp_path: Path) -> None:
    _published_bert(tmp_path)
    with pytest.raises(RecipeError, match="4 layers, the recipe's 5"):
        _bert(tmp_path, layers=5)


def test_bert_with_a_missing_key_is_refused_by_name(tmp_path: Path) -> None:
    model = _published_bert(tmp_path)
    state = model.state_dict()
    del state["bert.encoder.layer.1.output.dense.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(RecipeError, match=r"lack .*layer\.1\.output\.dense\.weight"):
        _bert(tmp_path)


def test_an_absent_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.text\.weights"):
        _bert(tmp_path / "nowhere")


def _published_names() -> list[tuple[str, str]]:
    """(recipe, timm name) of every shipped recipe whose image tower starts pretrained."""
    names = sorted(path.stem for path in config.RECIPES.glob("*.toml"))
    tables = {name: recipe.load(name).model for name in names}
    with_pixels = {name: t for name, t in tables.items() if not isinstance(t, recipe.SemVLPModel)}
    return [(name, str(t.image.weights)) for name, t in with_pixels.items() if t.pretrained]


def test_recipes_that_start_pretrained_are_looked_at() -> None:
    wanted = {"pretrain_svl", "pretrain_svl_resnet50", "pretrain_fiber", "pretrain_pixelbert"}
    assert wanted <= {name for name, _ in _published_names()}


@pytest.mark.parametrize(("name", "weights"), _published_names())
def test_timm_publishes_the_image_weights_of_the_recipe_and_they_fit_its_tower(
    name: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At full size, without a download: timm's registry has the name, its model has the tower's tensors."""
    table = recipe.load(name).model
    assert weights in timm.list_pretrained(), "timm knows no such published weights"
    with torch.device("meta"):
        theirs = timm.create_model(weights, pretrained=False)
        monkeypatch.setattr(pretrained, "published", lambda _: dict(theirs.state_dict()))
        if isinstance(table.image, Swin):
            SwinTower.from_recipe(table.image, table.image_size, pretrained=True)
        elif isinstance(table.image, recipe.CNN):
            CNN.from_recipe(table.image, pretrained=True)
        elif isinstance(table.image, ViT):
            ViTTower.from_recipe(table.image, table.image_size, pretrained=True)
        else:
            ResNetTower.from_recipe(table.image, table.image_size, table.text.width, pretrained=True)


def test_the_official_swin_was_trained_at_the_recipes_size_on_imagenet_22k() -> None:
    published = timm.get_pretrained_cfg(recipe.load("pretrain_fiber").model.image.weights)
    assert published.input_size == (3, 384, 384) and published.num_classes == 21841


def test_a_fiber_of_pretrained_towers_starts_as_timms_and_transformers_models(tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = SwinTransformer(
        img_size=64,
        num_classes=3,
        embed_dim=16,
        depths=(1, 1, 2, 2),
        num_heads=(1, 2, 2, 4),
        window_size=2,
        mlp_ratio=2.0,
    ).eval()
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    more = {"intermediate_size": 64, "max_position_embeddings": 16, "type_vocab_size": 1, "pad_token_id": 0}
    text = RobertaForMaskedLM(RobertaConfig(**sizes, **more, layer_norm_eps=1e-5)).eval()
    text.save_pretrained(tmp_path / "roberta")
    shown = make_fiber_recipe(
        "model.pretrained=true",
        f"model.image.weights={_save(tmp_path, image.state_dict())}",
        f"model.text.weights={tmp_path / 'roberta'}",
    )
    model = system.build(shown, make_facts()).eval().model
    pixels, ids = torch.randn(2, 3, 64, 64), torch.randint(5, 40, (2, 9))
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    seen = model.finish_image(model.encode_image(pixels)).tokens
    torch.testing.assert_close(seen, image.forward_features(pixels).flatten(1, 2), atol=1e-5, rtol=1e-5)
    read = model.finish_text(model.encode_text(ids.masked_fill(~mask, 0), mask)).tokens
    theirs = text.roberta(ids.masked_fill(~mask, 0), mask.long()).last_hidden_state
    torch.testing.assert_close(read[mask], theirs[mask], atol=1e-5, rtol=1e-5)
