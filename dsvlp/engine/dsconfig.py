"""DeepSpeed's configuration = a layout of `ds_configs/` + what the recipe owns. Torch-free.

One owner for each key: a layout says only how memory and communication are laid out (stage,
buckets, offload, overlap), so that the same file serves a CPU in fp32 and a GPU in bf16. Batch
sizes, accumulation, precision, optimizer, schedule and clipping stand in the recipe; a layout that
sets one of them is refused by name, and so is whatever our checkpoints were not shown to survive.

Gradients are reduced in fp32 also under bf16 (no `lower_precision_safe_modules`): twice the bytes
of DeepSpeed's default, and a sum over ranks that does not lose bits as ranks are added.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsvlp.errors import RecipeError
from dsvlp.recipe import Recipe, micro_pairs

_PACKAGE = Path(__file__).resolve().parent.parent

# DeepSpeed's key -> the recipe's key that owns it.
RECIPE_OWNS = {
    "train_batch_size": "batch.global_pairs",
    "train_micro_batch_size_per_gpu": "batch.micro_pairs",
    "gradient_accumulation_steps": "batch.global_pairs / (batch.micro_pairs x processes)",
    "gradient_clipping": "optimizer.clip_norm",
    "optimizer": "[optimizer]",
    "scheduler": "[schedule]",
    "fp16": "engine.precision",
    "bf16": "engine.precision",
    "bfloat16": "engine.precision",
    "amp": "engine.precision",
    "torch_autocast": "engine.precision",
    "data_types": "engine.precision",
    "activation_checkpointing": "engine.activation_checkpointing",
    "tensorboard": "[watch]",
    "wandb": "[watch]",
    "steps_per_print": "watch.log_every_steps",
    "managed_gradient_accumulation": "the train loop",
    "zero_allow_untested_optimizer": "the engine",
    "zero_force_ds_cpu_optimizer": "the engine",
}

LAYOUT_KEYS = {
    "zero_optimization",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "wall_clock_breakdown",
    "memory_breakdown",
    "comms_logger",
}

# Keys of `zero_optimization` under which checkpoints were shown to resume bit for bit.
ZERO_KEYS = {
    "stage",
    "contiguous_gradients",
    "reduce_scatter",
    "reduce_bucket_size",
    "use_multi_rank_bucket_allreduce",
    "allgather_partitions",
    "allgather_bucket_size",
    "overlap_comm",
    "ignore_unused_parameters",
    "round_robin_gradients",
    "memory_efficient_linear",
    "offload_optimizer",
    "offload_param",
    "sub_group_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_module_granularity_threshold",
    "stage3_allgather_sequential",
}


def layouts_folder() -> Path:
    """Returns the folder of the layouts: package data of a wheel, or beside the package in a checkout."""
    for folder in (_PACKAGE / "ds_configs", _PACKAGE.parent / "ds_configs"):
        if folder.is_dir():
            return folder
    raise RecipeError(
        f"the folder ds_configs is neither in {_PACKAGE} nor beside it",
        "the layouts that ship with the package",
        "Install the package again",
    )


def load_layout(name: str) -> dict[str, Any]:
    """Returns a checked layout.

    Args:
        name: the layout's name, as a recipe says it: `engine.zero = "zero2"`.

    Raises:
        RecipeError: names the key that the layout must not set, and its owner.
    """
    path = layouts_folder() / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.json")))
        raise RecipeError(f"there is no layout {name!r} in {path.parent}", f"one of {known}")
    try:
        layout = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"the layout {path} is not JSON: {error}") from error
    check_layout(layout, str(path))
    return layout  # type: ignore[no-any-return]


def layout_of(recipe: Recipe) -> dict[str, Any]:
    """Returns the checked layout of a recipe.

    Raises:
        RecipeError: a wrong layout, or one that does not go with `engine.compile`.
    """
    name = recipe.engine.zero
    layout = load_layout(name)
    if recipe.engine.compile:
        check_compile(layout, name)
    return layout


def check_compile(layout: dict[str, Any], name: str) -> None:
    """Raises `RecipeError` where a checked layout does not go with compiled blocks.

    A compiled backward hands over gradients on several streams; with `overlap_comm` DeepSpeed's reduction
    waited for one of them, and the loss was NaN from the first step (DeepSpeed issue 8061, stages 1 and 2).
    0.19.8 waits for all streams that fill a bucket (pull 8080), though not for that of a parameter larger
    than a bucket; until the pair was seen to work on a GPU it stays refused.
    """
    if stage(layout) == 3:
        raise RecipeError(
            f"engine.compile = true with engine.zero = {name!r}: in stage 3 hooks of the modules inside a "
            f"block gather its parameters, and a compiled block calls none",
            "stage 0, 1 or 2",
            "Set engine.zero=zero1, or engine.compile=false",
        )
    if layout["zero_optimization"].get("overlap_comm", False):
        raise RecipeError(
            f"engine.compile = true, and the layout {name!r} sets overlap_comm = true: the reduction may "
            f"read gradients before they are written (DeepSpeed issue 8061: NaN from the first step)",
            "overlap_comm = false under compiled blocks",
            f"Set engine.zero=zero1, or overlap_comm to false in ds_configs/{name}.json, or "
            f"engine.compile=false",
        )


def check_layout(layout: Any, where: str) -> None:
    """Raises `RecipeError` where a layout sets what it does not own or what cannot be resumed."""
    if not isinstance(layout, dict) or not isinstance(layout.get("zero_optimization"), dict):
        raise RecipeError(
            f"{where} has no table zero_optimization", 'e.g. {"zero_optimization": {"stage": 1}}'
        )
    for key in layout:
        if key in RECIPE_OWNS:
            raise RecipeError(
                f"{where} sets {key!r}",
                f"only memory and communication; {key!r} is owned by {RECIPE_OWNS[key]}",
                "Remove it from the layout and say it in the recipe",
            )
        if key not in LAYOUT_KEYS:
            raise RecipeError(f"{where} sets {key!r}", f"only {', '.join(sorted(LAYOUT_KEYS))}")
    _refuse_auto(layout, where)
    _check_zero(layout["zero_optimization"], where)


def _refuse_auto(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_auto(inner, f"{where}: {key}")
    elif value == "auto":
        raise RecipeError(f'{where} = "auto"', "a number", 'Nothing here resolves "auto"; write the value')


def _check_zero(zero: dict[str, Any], where: str) -> None:
    unknown = sorted(set(zero) - ZERO_KEYS)
    if unknown:
        raise RecipeError(
            f"{where} sets zero_optimization.{unknown[0]}",
            f"only {', '.join(sorted(ZERO_KEYS))}",
            "Other keys were not shown to survive a checkpoint",
        )
    stage = zero.get("stage")
    if type(stage) is not int or not 0 <= stage <= 3:
        raise RecipeError(f"{where}: zero_optimization.stage = {stage!r}", "0, 1, 2 or 3")
    if zero.get("round_robin_gradients"):
        raise RecipeError(
            f"{where} sets round_robin_gradients",
            "false: it makes DeepSpeed's map of fragments silently wrong",
        )
    if stage == 3 and zero.get("memory_efficient_linear", True):
        raise RecipeError(
            f"{where} leaves memory_efficient_linear on",
            "false in stage 3: it replaces torch's linear for the whole process and breaks bit-exact resume",
        )
    for key in ("offload_optimizer", "offload_param"):
        device = zero.get(key, {}).get("device", "none")
        if device not in ("none", "cpu"):
            raise RecipeError(
                f"{where}: {key}.device = {device!r}", "none or cpu; NVMe was not shown to work"
            )


def stage(layout: dict[str, Any]) -> int:
    """Returns the ZeRO stage of a checked layout, 0 to 3."""
    return int(layout["zero_optimization"]["stage"])


def deepspeed_config(recipe: Recipe, *, accumulation: int, world: int) -> dict[str, Any]:
    """Returns the whole dictionary for `deepspeed.initialize`.

    Args:
        recipe: owner of batch, precision and clipping; names the layout.
        accumulation: micro-batches of an optimizer step on each process.
        world: number of processes.

    Raises:
        RecipeError: a wrong layout or one not for `engine.compile`, or micro-batch x accumulation x world is
            not the global batch.
    """
    batch, micro = recipe.batch, micro_pairs(recipe, world)
    if micro * accumulation * world != batch.global_pairs:
        raise RecipeError(
            f"a micro-batch of {micro} x accumulation {accumulation} x {world} processes "
            f"= {micro * accumulation * world}",
            f"batch.global_pairs {batch.global_pairs}",
            "Change the number of processes or the micro-batch",
        )
    layout = layout_of(recipe)
    config: dict[str, Any] = {
        **layout,
        "train_batch_size": batch.global_pairs,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        # In stage 0 DeepSpeed clips without reporting the norm, so the engine does both itself.
        "gradient_clipping": recipe.optimizer.clip_norm if stage(layout) else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if recipe.engine.precision == "bf16":
        config["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        }
    return config
