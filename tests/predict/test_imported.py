"""`dsvlp import fiber` and back: the small official model's numbers, and checkpoints that do not fit."""

import json
import logging
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from torch import Tensor

import dsvlp
from dsvlp import config, recipe
from dsvlp.cli import export as export_verb
from dsvlp.cli import importing as import_verb
from dsvlp.data.text import Tokenizer
from dsvlp.engine.exported import WEIGHTS
from dsvlp.errors import CheckpointError, DsvlpError, RecipeError, RunError
from dsvlp.models.fiber_names import why_dead
from dsvlp.predict import imported
from dsvlp.system import ImageRequest, MatchRequest, TextRequest
from tests.models.official import Official, official, sizes

TASKS = ("vqa_classifier.", "nlvr2_classifier.")
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture(scope="module")
def theirs() -> Official:
    return official()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A tokenizer with RoBERTa's special ids."""
    words = [*SPECIALS, "a", "red", "circle", "dog"]
    backend = Backend(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(SPECIALS)
    folder = tmp_path_factory.mktemp("words")
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def weights(theirs) -> dict[str, Tensor]:
    """The official state without the tasks' heads, as pre-training leaves it."""
    return {name: tensor for name, tensor in theirs.weights.items() if not name.startswith(TASKS)}


@pytest.fixture(scope="module")
def keys(theirs) -> list[str]:
    """The official model's sizes as `key=value`; its captioning is left to the import to find."""
    model = config.dump(sizes(theirs, captioning=False))["model"]
    del model["captioning"]
    return [*leaves(model, "model."), "objectives.itc.queue=6", "objectives.itm.negatives=queue"]


def leaves(table: dict, prefix: str) -> list[str]:
    """Returns `key=value` of every leaf of a recipe's table that has a value."""
    found = []
    for key, value in table.items():
        if isinstance(value, dict):
            found += leaves(value, f"{prefix}{key}.")
        elif value is not None:
            found.append(f"{prefix}{key}={json.dumps(value)}")
    return found


def run(path: Path, out: Path, tokenizer: Path, keys: list[str], *more: str):
    words = ["fiber", str(path), "--out", str(out), "--tokenizer", str(tokenizer), "--recipe", "tiny_fiber"]
    return CliRunner().invoke(import_verb.command, [*words, *more, *keys])


@pytest.fixture(scope="module")
def folder(weights, tokenizer, keys, tmp_path_factory) -> Path:
    """What `dsvlp import` makes of a `.ckpt`."""
    path = tmp_path_factory.mktemp("import")
    torch.save({"state_dict": weights, "epoch": 3}, path / "nano.ckpt")
    done = run(path / "nano.ckpt", path / "out", tokenizer, keys)
    assert done.exit_code == 0, done.output
    return path / "out"


def test_an_import_matches_as_the_official_model_does(folder, theirs):
    system = dsvlp.load(folder).trained.system.eval()
    ids, mask = theirs.inputs["text_ids"], theirs.inputs["text_masks"].bool()
    with torch.no_grad():
        image, text = system(ImageRequest(theirs.inputs["image"])), system(TextRequest(ids, mask))
        _, found = system(MatchRequest(image, text))
    expected = theirs.outputs["itm_logits"][:, 1] - theirs.outputs["itm_logits"][:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_import_predicts_as_an_export_of_ours_does(folder, picture):
    assert 0 < dsvlp.load(folder).match(picture, "a red dog") < 1


def test_captioning_follows_the_checkpoint(folder, theirs):
    assert dsvlp.load(folder).trained.recipe.model.captioning
    assert any(name.startswith("cross_modal_att_layers.") for name in theirs.weights)


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_the_way_back_gives_every_used_tensor_to_the_bit(folder, weights, theirs, tmp_path, ending):
    out = tmp_path / f"back.{ending}"
    done = CliRunner().invoke(export_verb.command, [str(folder), "--format", "fiber", "--out", str(out)])
    assert done.exit_code == 0, done.output
    found = load_file(out) if ending == "safetensors" else torch.load(out, weights_only=True)["state_dict"]
    used = {name for name in weights if why_dead(name, theirs.plan) is None}
    assert found.keys() == used | {"rank_output.weight", "rank_output.bias"}
    assert [name for name in used if not torch.equal(found[name], weights[name])] == []


def test_the_official_reranking_head_is_written_as_the_itm_heads_row_of_matches(folder, tmp_path):
    out = tmp_path / "back.safetensors"
    imported.write(dsvlp.load(folder).trained.system, dsvlp.load(folder).trained.recipe, out)
    found = load_file(out)
    for kind in ("weight", "bias"):
        assert torch.equal(found[f"rank_output.{kind}"], found[f"itm_score.fc.{kind}"][1:])


def test_queue_and_pool_of_ours_start_as_they_are_built_and_do_not_go_back(folder):
    system = dsvlp.load(folder).trained.system
    assert (system.objectives["itc"].queue.rows == -1).all()
    assert (system.objectives["itm"].pool.samples == -1).all()


def read(path: Path, tokenizer: Path, keys: list[str]):
    return imported.read(path, "tiny_fiber", keys, Tokenizer.load(tokenizer))


def test_the_reranking_head_is_warned_of(weights, tokenizer, keys, tmp_path, caplog):
    save_file(weights, tmp_path / "a.safetensors")
    with caplog.at_level(logging.INFO):
        read(tmp_path / "a.safetensors", tokenizer, keys)
    assert any("rank_output" in r.message and r.levelno == logging.WARNING for r in caplog.records)
    assert any("12 entries, norm of a cross-attention" in r.message for r in caplog.records)


def test_another_size_is_refused_until_it_is_asked_for_and_then_resizes_the_tables(
    weights, tokenizer, keys, tmp_path
):
    save_file(weights, tmp_path / "a.safetensors")
    keys = [key for key in keys if not key.startswith(("model.image_size", "model.image.window"))]
    done = run(tmp_path / "a.safetensors", tmp_path / "out", tokenizer, keys)
    assert isinstance(done.exception, CheckpointError)
    assert "windows for 128 pixels, the recipe's model.image_size is 96" in str(done.exception)
    assert "--image-size 128 to keep it, or --image-size 96 to resize" in str(done.exception)
    done = run(tmp_path / "a.safetensors", tmp_path / "out", tokenizer, keys, "--image-size", "192")
    assert done.exit_code == 0, done.output
    system = dsvlp.load(tmp_path / "out").trained.system
    table = "layers.2.blocks.3.attn.relative_position_bias_table"
    assert system.model.image.get_parameter(table).shape == (11**2, 4)
    same = system.model.image.get_parameter("layers.2.blocks.3.attn.qkv.weight")
    assert torch.equal(same, weights["vit_model.layers.2.blocks.3.attn.qkv.weight"])


def without(state: dict[str, Tensor], *starts: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(starts)}


QUERY_NORM = "vit_model.layers.3.blocks.0.attn.norm_i2t_i"
DAMAGES = {
    "missing": (lambda s: without(s, "mlm_score.bias"), r"lacks mlm_score\.bias\."),
    "missing query norm": (
        lambda s: without(s, QUERY_NORM),
        r"lacks .*norm_i2t_i\.bias.*query_norm=false",
    ),
    "extra": (lambda s: s | {"vqa_classifier.0.bias": torch.ones(2)}, r"holds vqa_classifier\.0\.bias"),
    "unknown": (lambda s: s | {"something.else": torch.ones(2)}, r"holds something\.else"),
    "shape": (
        lambda s: s | {"itm_score.fc.bias": torch.ones(3)},
        r"objectives\.itm\.head\.bias: \(3,\) in the file, \(2,\) in the system",
    ),
    "fine-grained": (
        lambda s: {f"module.backbone.{name}": tensor for name, tensor in s.items()},
        "fine-grained FIBER, a detector",
    ),
    "fine-grained text": (lambda s: {"language_backbone.a.weight": torch.ones(1)}, "fine-grained FIBER"),
    "another model": (
        lambda s: {"visual.conv1.weight": torch.ones(1)},
        r"no FIBER: it holds visual\.conv1",
    ),
    "empty": (lambda s: {}, "is no FIBER: it holds nothing"),
    "another plan": (
        lambda s: {
            k.replace("layers.3.blocks.0.attn.alpha", "layers.1.blocks.0.attn.alpha"): s[k] for k in s
        },
        r"holds vit_model\.layers\.1\.blocks\.0\.attn\.alpha_i2t",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_does_not_fit_is_named_and_nothing_is_written(kind, weights, tokenizer, keys, tmp_path):
    damage, says = DAMAGES[kind]
    torch.save({"state_dict": damage(weights)}, tmp_path / "a.ckpt")
    done = run(tmp_path / "a.ckpt", tmp_path / "out", tokenizer, keys)
    assert isinstance(done.exception, DsvlpError), done.output
    with pytest.raises(CheckpointError, match=says):
        raise done.exception
    assert [child.name for child in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_folder_that_exists_is_not_touched(weights, tokenizer, keys, folder, tmp_path):
    save_file(weights, tmp_path / "a.safetensors")
    before = (folder / WEIGHTS).read_bytes()
    done = run(tmp_path / "a.safetensors", folder, tokenizer, keys)
    assert isinstance(done.exception, RunError) and "exists already" in str(done.exception)
    assert (folder / WEIGHTS).read_bytes() == before


def test_a_tokenizer_that_pads_otherwise_and_another_systems_recipe_are_refused(
    weights, tokenizer, keys, tmp_path
):
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(RecipeError, match=r"pads with id 1, model\.text\.padding_id is 2"):
        read(tmp_path / "a.safetensors", tokenizer, [*keys, "model.text.padding_id=2"])
    with pytest.raises(RunError, match="'svl' has no official FIBER form"):
        imported.read(tmp_path / "a.safetensors", "tiny_svl", [], Tokenizer.load(tokenizer))
    with pytest.raises(RecipeError, match="nearest valid sizes"):
        read(tmp_path / "a.safetensors", tokenizer, [*keys, "model.image_size=100"])


def test_only_fiber_goes_back(tmp_path):
    with pytest.raises(RunError, match="'svl' has no official FIBER form"):
        imported.fiber_table(recipe.load("tiny_svl"))
