"""dsvlp.config: strict TOML recipes, and messages that say what to do."""

import pytest

from dsvlp import config, recipe
from dsvlp.errors import RecipeError


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_command_line_beats_file_beats_base_beats_default(tmp_path):
    name = write(tmp_path, "mine.toml", 'base = "tiny_svl"\nseed = 3\n[optimizer]\nlr = 0.5\n')
    loaded = recipe.load(name, ["seed=4", "optimizer.clip_norm=2"])
    base = recipe.load("tiny_svl")
    assert (loaded.seed, loaded.optimizer.lr, loaded.optimizer.clip_norm) == (4, 0.5, 2.0)
    assert loaded.schedule == base.schedule
    assert base.optimizer.clip_norm == 1.0


def test_resolved_recipe_survives_json():
    loaded = recipe.load("tiny_svl", ["objectives.segl=false", "data.augment.scale=[0.9, 1.1]"])
    again = recipe.from_json(config.dump(loaded), "here")
    assert again == loaded and config.digest(again) == config.digest(loaded)
    assert loaded.objectives.segl is None


def test_a_base_may_change_the_kind_of_a_tower(tmp_path):
    text = 'base = "tiny_svl"\n[model.image]\nkind = "resnet"\nname = "resnet18"\n'
    assert recipe.load(write(tmp_path, "r.toml", text)).model.image.kind == "resnet"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.lrr=1", ["optimizer.lrr", "did you mean 'lr'"]),
        ("model.image.widht=3", ["did you mean 'width'"]),
        ("objectives.foo.weight=1", ["valid keys", "itm, mlm"]),
        ("seed=1.5", ["seed = 1.5"]),
        ("seed=true", ["seed = True"]),
        ("engine.zero=zero9", ["zero9", "'zero3'"]),
        ("model.image_size=100", ["96 and 112"]),
        ("batch.micro_pairs=24", ["not a multiple", "micro_pairs"]),
        ("objectives.spl.weight=1.0", ["queries", "model.visual_queries"]),
        ("model.visual_queries=4", ["nothing trains them"]),
        ("model.pretrained=true", ["model.image.weights"]),
        ("data.captions_per_image=3", ["captions_per_image"]),
        ("nonsense", ["not key=value"]),
    ],
)
def test_a_wrong_key_or_value_is_named(override, words):
    with pytest.raises(RecipeError) as caught:
        recipe.load("tiny_svl", [override])
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=inf",
        "optimizer.betas=[0.9, 1.0]",
        "data.augment.scale=[1.2, 0.8]",
        "seed=99999999999999999999",
        "seed=2026-01-01",  # a date in TOML
    ],
)
def test_a_value_that_no_run_could_use_is_refused_with_its_key(override):
    with pytest.raises(
        RecipeError, match=r"recipe tiny_svl: (data\.)?" + override.split(".")[0].split("=")[0]
    ):
        recipe.load("tiny_svl", [override])


def test_missing_keys_are_named(tmp_path):
    name = write(tmp_path, "r.toml", 'base = "tiny_svl"\nschedule = false\n')
    with pytest.raises(RecipeError, match="'schedule' is missing"):
        recipe.load(name)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean 'tiny_svl'"):
        recipe.load("tiny_svll")


def test_a_hint_that_asks_ends_in_its_question_mark_alone():
    with pytest.raises(RecipeError, match=r"did you mean 'steps'\? `dsvlp recipes"):
        recipe.load("tiny_svl", ["schedule.stepz=3"])


def test_broken_toml_names_the_file(tmp_path):
    with pytest.raises(RecipeError, match=r"broken\.toml is not TOML"):
        recipe.load(write(tmp_path, "broken.toml", "a = [1"))


def test_a_base_of_a_base_is_refused(tmp_path):
    write(tmp_path, "one.toml", 'base = "tiny_svl"\n')
    with pytest.raises(RecipeError, match="base of its own"):
        recipe.load(write(tmp_path, "two.toml", 'base = "one.toml"\n'))


def test_accumulation_follows_from_the_world_and_bad_worlds_are_refused():
    loaded = recipe.load("tiny_svl", ["batch.global_pairs=64", "batch.micro_pairs=16"])
    assert [recipe.accumulation(loaded, world) for world in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(RecipeError, match=r"one of \[1, 2, 4\] processes"):
        recipe.accumulation(loaded, 3)


def test_differences_are_one_line_a_leaf():
    old, new = (config.dump(recipe.load("tiny_svl", [o])) for o in ("seed=1", "optimizer.lr=0.5"))
    assert config.differences(old, new) == ["optimizer.lr: 0.001 -> 0.5", "seed: 1 -> 0"]
