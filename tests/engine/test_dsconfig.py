from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsvlp import recipe as recipes
from dsvlp.engine import dsconfig
from dsvlp.errors import RecipeError

LAYOUTS = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")


def recipe(**engine: str | bool) -> recipes.Recipe:
    return recipes.load("tiny_svl", [f"engine.{key}={str(value).lower()}" for key, value in engine.items()])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_layout_serves_both_precisions(layout: str, precision: str) -> None:
    config = dsconfig.deepspeed_config(recipe(zero=layout, precision=precision), accumulation=1, world=2)
    assert config["train_batch_size"] == 64 and config["train_micro_batch_size_per_gpu"] == 32
    assert ("torch_autocast" in config) == (precision == "bf16")
    assert "bf16" not in config and "optimizer" not in config and "scheduler" not in config
    assert (config["gradient_clipping"] > 0) == (dsconfig.stage(config) > 0)


def test_every_shipped_layout_is_one_that_a_recipe_can_name() -> None:
    assert {path.stem for path in dsconfig.layouts_folder().glob("*.json")} == set(LAYOUTS)


@pytest.mark.parametrize("key", sorted(dsconfig.RECIPE_OWNS))
def test_a_layout_that_sets_what_the_recipe_owns_is_refused_by_name(key: str) -> None:
    layout = {"zero_optimization": {"stage": 1}, key: 1}
    with pytest.raises(RecipeError) as caught:
        dsconfig.check_layout(layout, "x.json")
    assert repr(key) in str(caught.value) and dsconfig.RECIPE_OWNS[key] in str(caught.value)


@pytest.mark.parametrize(
    ("zero", "word"),
    [
        ({"stage": 2, "reduce_bucket_size": "auto"}, "auto"),
        ({"stage": 2, "round_robin_gradients": True}, "round_robin_gradients"),
        ({"stage": 3}, "memory_efficient_linear"),
        ({"stage": 4}, "stage"),
        ({"stage": True}, "stage"),
        ({}, "stage"),
        ({"stage": 1, "zero_quantized_gradients": True}, "zero_quantized_gradients"),
        ({"stage": 2, "offload_optimizer": {"device": "nvme"}}, "nvme"),
    ],
)
def test_a_layout_that_breaks_checkpoints_is_refused(zero: dict[str, Any], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        dsconfig.check_layout({"zero_optimization": zero}, "x.json")


@pytest.mark.parametrize(
    "layout", [None, [], {}, {"zero_optimization": 1}, {"zero_optimization": {}, "moe": 1}]
)
def test_what_is_no_layout_is_refused(layout: Any) -> None:
    with pytest.raises(RecipeError, match=r"x\.json"):
        dsconfig.check_layout(layout, "x.json")


def test_sizes_that_do_not_multiply_are_refused_in_our_words() -> None:
    with pytest.raises(RecipeError, match=r"32 x accumulation 1 x 3 processes = 96.*64"):
        dsconfig.deepspeed_config(recipe(), accumulation=1, world=3)


def test_layouts_of_an_installed_wheel_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "dsvlp"
    (package / "ds_configs").mkdir(parents=True)
    (package / "ds_configs" / "zero1.json").write_text(json.dumps({"zero_optimization": {"stage": 1}}))
    monkeypatch.setattr(dsconfig, "_PACKAGE", package)
    assert dsconfig.load_layout("zero1") == {"zero_optimization": {"stage": 1}}
    with pytest.raises(RecipeError, match="one of zero1"):
        dsconfig.load_layout("zero2")


def test_a_layout_that_is_not_json_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs" / "zero1.json").write_text("{")
    monkeypatch.setattr(dsconfig, "_PACKAGE", tmp_path)
    with pytest.raises(RecipeError, match=r"zero1\.json is not JSON"):
        dsconfig.load_layout("zero1")


@pytest.mark.parametrize("layout", ["zero0", "zero1"])
def test_compiled_blocks_go_with_a_layout_that_does_not_overlap(layout: str) -> None:
    assert dsconfig.layout_of(recipe(zero=layout, compile=True)) == dsconfig.load_layout(layout)


def test_compiled_blocks_with_overlap_comm_are_refused_with_both_keys_and_the_fix() -> None:
    with pytest.raises(
        RecipeError, match=r"engine\.compile = true.*'zero2' sets overlap_comm = true"
    ) as caught:
        dsconfig.deepspeed_config(recipe(zero="zero2", compile=True), accumulation=1, world=2)
    assert "engine.zero=zero1" in str(caught.value) and "ds_configs/zero2.json" in str(caught.value)
    apart = {
        "zero_optimization": {**dsconfig.load_layout("zero2")["zero_optimization"], "overlap_comm": False}
    }
    dsconfig.check_compile(apart, "zero2")


@pytest.mark.parametrize("layout", ["zero3", "zero3_offload"])
def test_compiled_blocks_under_stage_3_are_refused(layout: str) -> None:
    with pytest.raises(RecipeError, match=rf"engine\.compile = true with engine\.zero = '{layout}'"):
        dsconfig.layout_of(recipe(zero=layout, compile=True))
