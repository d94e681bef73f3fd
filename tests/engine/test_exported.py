"""What may start a training, as a login node can tell: no weight is read, no torch is needed."""

import json
import shutil

import pytest

from dsvlp import recipe
from dsvlp.engine.exported import MANIFEST, WEIGHTS, describe, start_of
from dsvlp.errors import CheckpointError, RecipeError
from tests.batches import make_fiber_recipe, make_recipe
from tests.engine.exports import write_export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_export(make_fiber_recipe(), tmp_path_factory.mktemp("exported") / "fiber")


def test_a_recipe_without_a_start_names_none():
    assert start_of(make_fiber_recipe()) is None


def test_an_export_of_the_same_sizes_may_start(folder):
    found = start_of(make_fiber_recipe(f"start={folder}"))
    assert found == describe(folder) and found.step == 7
    found.verify()


@pytest.mark.parametrize(
    "override",
    [
        "model.image_size=96",
        "model.image.drop_path=0.2",
        "model.text.dropout=0.1",
        "model.text.max_length=8",
        "objectives.mlm=false",
        "engine.zero=zero3",
    ],
)
def test_what_no_weight_depends_on_may_differ(folder, override):
    assert start_of(make_fiber_recipe(f"start={folder}", override)) is not None


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.text.vocabulary=41", r"model\.text\.vocabulary: 40 -> 41"),
        ("model.image.width=32", r"model\.image\.width: 16 -> 32"),
        ("model.text.heads=4", r"model\.text\.heads: 2 -> 4"),
        (
            "model.fusion.plan=[[3,1,1]]",
            r"model\.fusion\.plan: \[\[3, 1, 1\], \[4, 0, 2\], \[4, 1, 3\]\] -> ",
        ),
        ("model.captioning=true", r"model\.captioning: false -> true"),
    ],
)
def test_other_sizes_are_refused_by_name_and_value(folder, override, named):
    with pytest.raises(RecipeError, match=named):
        start_of(make_fiber_recipe(f"start={folder}", override))


def test_another_system_is_refused(folder):
    with pytest.raises(RecipeError, match=r"holds the system 'fiber'\. Expected the recipe's .* 'svl'"):
        start_of(make_recipe(f"start={folder}"))


def test_what_is_no_export_is_refused(folder, tmp_path):
    with pytest.raises(RecipeError, match=r"holds no export\.json"):
        start_of(make_fiber_recipe(f"start={tmp_path}"))
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"is a run\. .*dsvlp export .* --out DIR"):
        start_of(make_fiber_recipe(f"start={tmp_path}"))


def another_format(folder):
    told = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(told | {"format": 99}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (another_format, "format 99"),
        (lambda folder: (folder / WEIGHTS).unlink(), "is damaged: FileNotFoundError"),
        (lambda folder: (folder / MANIFEST).write_text("[1]"), "is damaged: TypeError"),
    ],
)
def test_damage_is_named_before_a_weight_is_read(folder, tmp_path, damage, says):
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)
    with pytest.raises(CheckpointError, match=says):
        start_of(make_fiber_recipe(f"start={copy}"))


def test_published_towers_beside_a_start_are_a_contradiction():
    with pytest.raises(RecipeError, match=r"start = 'DIR'.*set model\.pretrained = false"):
        recipe.load("pretrain_fiber", ["start=DIR"])
    assert recipe.load("pretrain_fiber", ["start=DIR", "model.pretrained=false"]).start == "DIR"
