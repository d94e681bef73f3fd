"""What a recipe may say: one frozen class a table, with units, defaults and sources.

A default stands here only where it holds for every system, or where the class belongs to one
system and the specification of that system names it. `dsvlp recipes --keys` prints
them all. Contradictions that can be seen without data are refused here, on the login node.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dsvlp import catalog, config
from dsvlp.config import Strict
from dsvlp.errors import RecipeError
from dsvlp.recipe.data import Augment, Data, Source, Synthetic
from dsvlp.recipe.joint import CNN, PixelBERTModel, SemVLPModel
from dsvlp.recipe.model import (
    BERT,
    BackboneFusion,
    FIBERModel,
    METERModel,
    ResNet,
    RoBERTa,
    SVLModel,
    Swin,
    TopFusion,
    Towers,
    ViT,
)
from dsvlp.recipe.numbers import Decay, Positive, PositiveFloat, Seed, Share
from dsvlp.recipe.objectives import ITC, ITM, MLM, MOP, QA, SEGL, SPL, SSUL, Objectives

__all__ = [
    "BERT",
    "CNN",
    "ITC",
    "ITM",
    "MLM",
    "MOP",
    "QA",
    "SEGL",
    "SPL",
    "SSUL",
    "Augment",
    "BackboneFusion",
    "BatchSize",
    "Checkpoints",
    "Data",
    "Engine",
    "FIBERModel",
    "METERModel",
    "Objectives",
    "Optimizer",
    "PixelBERTModel",
    "Recipe",
    "ResNet",
    "RoBERTa",
    "SVLModel",
    "Schedule",
    "SemVLPModel",
    "Source",
    "Swin",
    "Synthetic",
    "TopFusion",
    "Towers",
    "ViT",
    "Watch",
    "accumulation",
    "fetches_negatives",
    "from_json",
    "gathers_negatives",
    "load",
    "micro_pairs",
    "reads_objects",
    "swaps_texts",
]


class BatchSize(Strict):
    """Pairs in an optimizer step and in a forward pass; accumulation and world size follow."""

    global_pairs: Positive
    micro_pairs: Positive | None = None
    contrastive_pairs: Positive | None = Field(
        None,
        description="pairs gathered over all ranks for ITC; a rank's micro-batch is its share of them, "
        "and micro_pairs is left out (false where the base sets it)",
    )

    @model_validator(mode="before")
    @classmethod
    def _left_out(cls, table: Any) -> Any:
        """Drops `micro_pairs = false`, which a recipe says whose base sets it."""
        return {k: v for k, v in table.items() if v is not False} if isinstance(table, dict) else table

    @model_validator(mode="after")
    def _one(self) -> "BatchSize":
        if (self.micro_pairs is None) == (self.contrastive_pairs is None):
            raise ValueError("set micro_pairs, or contrastive_pairs in its place; one of the two")
        return self


class CNNOptimizer(Strict):
    """SGD with momentum for a CNN's trunk, beside AdamW for the rest (Pixel-BERT, Hyperparameters)."""

    lr: PositiveFloat = 1e-2
    momentum: Decay = Field(0.9, description="not stated in the paper; SOHO's")
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4


class Optimizer(Strict):
    """AdamW (SVL: specification, Data, augmentation, training), and SGD for a CNN's trunk."""

    lr: PositiveFloat
    backbone_lr_factor: PositiveFloat = Field(
        1.0, description="for the two towers where they start trained: `model.pretrained`, or a `start`"
    )
    fusion_lr_factor: PositiveFloat = Field(
        1.0, description="for the fusion between the towers; FIBER's code: 5"
    )
    head_lr_factor: PositiveFloat = Field(1.0, description="for the objectives' heads; FIBER's code: 5")
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    decay: Literal["matrices", "fiber"] = Field(
        "matrices", description="fiber: gates, temperature and the image query's norm too, as FIBER's code"
    )
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    eps: PositiveFloat = 1e-8
    clip_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="0: no clipping")
    cnn: CNNOptimizer | None = Field(None, description="an update rule of its own for the CNN's trunk")


class Schedule(Strict):
    """Learning rate as a pure function of the step."""

    steps: Positive
    warmup: Share = Field(0.05, description="share of the steps with a linear rise from 0")
    decay: Literal["linear", "cosine", "constant", "steps"] = "linear"
    drops: tuple[Share, ...] = Field(
        (), description="decay = 'steps': shares of the run after which the rate is a tenth of before"
    )

    @model_validator(mode="after")
    def _steps(self) -> "Schedule":
        if (self.decay == "steps") != bool(self.drops):
            raise ValueError("drops goes with decay = 'steps', and that needs at least one")
        return self


class Engine(Strict):
    """How the step is laid out on the machine. Memory and communication stand in ds_configs/."""

    zero: Literal["zero0", "zero1", "zero2", "zero3", "zero3_offload"] = "zero1"
    precision: Literal["fp32", "bf16"] = Field("bf16", description="bf16: autocast with fp32 master weights")
    share_prefixes: bool = Field(
        True, description="what lies below the fusion runs once for all passes; false: once a pass"
    )
    cut_texts: bool = Field(
        False, description="texts end with the longest of their micro-batch, not at model.text.max_length"
    )
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    compile: bool = Field(
        False,
        description="torch.compile of the transformer blocks, minutes at the start; not of CNNs",
    )
    deterministic: bool = Field(
        False,
        description="a GPU's run, too, is the same bit for bit, by slower kernels; what has none ends it",
    )
    max_skipped_steps: Positive = Field(10, description="non-finite steps in a row after which the run stops")
    watchdog_seconds: PositiveFloat = Field(1800.0, description="a step longer than this ends the process")


class Checkpoints(Strict):
    """What is saved when. The newest, the best and the last are never deleted."""

    every_steps: Positive = 1000
    keep: Positive = Field(
        2, description="newest checkpoints that stay; the best by validation stays beside them"
    )


class Watch(Strict):
    """How often the run speaks."""

    log_every_steps: Positive = 10
    validate_every_steps: Annotated[int, Field(ge=0)] = Field(0, description="0: only at the end")
    validation_pairs: Annotated[int, Field(ge=0)] = Field(0, description="0: the whole file")
    pictures_every_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="grids and texts in TensorBoard; 0: never"
    )


class Recipe(Strict):
    """A whole run: what `dsvlp train` reads and what stands in the run's `recipe.json`."""

    description: str
    seed: Seed = 0
    start: str | None = Field(
        None,
        description="folder of `dsvlp export` or `dsvlp import`: the weights at step 0, of the model and of "
        "the objectives that both have; tables over the image are resized",
    )
    model: Annotated[
        SVLModel | FIBERModel | METERModel | PixelBERTModel | SemVLPModel, Field(discriminator="system")
    ]
    data: Data = Data()
    objectives: Objectives
    batch: BatchSize
    optimizer: Optimizer
    schedule: Schedule
    engine: Engine = Engine()
    checkpoint: Checkpoints = Checkpoints()
    watch: Watch = Watch()

    @model_validator(mode="after")
    def _rules(self) -> "Recipe":
        image = getattr(self.model, "image", None)
        if self.optimizer.cnn is not None and not isinstance(image, CNN | ResNet):
            raise ValueError(
                f"optimizer.cnn is an update rule for a CNN's trunk, and this {self.model.system} has none; "
                f"leave the table out"
            )
        return self

    @model_validator(mode="after")
    def _agreement(self) -> "Recipe":
        for problem in catalog.problems(self):
            raise ValueError(problem)
        return self


def load(name: str, overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
    """Returns the resolved recipe of a file or shipped name; raises `RecipeError`."""
    return config.load(Recipe, name, overrides)


def from_json(tables: dict[str, Any], where: str) -> Recipe:
    """Returns the recipe of a run's or a checkpoint's `recipe.json`; raises `RecipeError`."""
    return config.validate(Recipe, tables, where)


def swaps_texts(recipe: Recipe) -> bool:
    """Returns whether the loader brings each pair another image's text, for ITM."""
    return recipe.objectives.itm is not None and recipe.objectives.itm.negatives == "loader"


def reads_objects(recipe: Recipe) -> bool:
    """Returns whether images are rows of region features, not pixels."""
    return isinstance(recipe.model, SemVLPModel)


def fetches_negatives(recipe: Recipe) -> bool:
    """Returns whether ITM's negatives come from ITC's queue, whose images and texts are brought again."""
    return recipe.objectives.itm is not None and recipe.objectives.itm.negatives == "queue"


def gathers_negatives(recipe: Recipe) -> bool:
    """Returns whether ITM's negatives are of all ranks' micro-batches, whose texts then have one length."""
    return recipe.objectives.itm is not None and recipe.objectives.itm.negatives == "gathered"


def micro_pairs(recipe: Recipe, world: int) -> int:
    """Returns the pairs of a micro-batch on each of `world` processes.

    Raises:
        RecipeError: `contrastive_pairs` cannot be shared out; names the valid numbers of processes.
    """
    batch = recipe.batch
    if batch.micro_pairs is not None:
        return batch.micro_pairs
    assert batch.contrastive_pairs is not None
    share, rest = divmod(batch.contrastive_pairs, world)
    captions, itm = recipe.data.captions_per_image, recipe.objectives.itm
    # Negatives from a process's own micro-batch need a second image in it.
    least = 2 if itm is not None and itm.of_own_batch else 1
    if rest or share % captions or share < least * captions:
        images = batch.contrastive_pairs // captions
        valid = [n for n in range(1, images // least + 1) if images % n == 0]
        raise RecipeError(
            f"batch.contrastive_pairs {batch.contrastive_pairs} cannot be shared by {world} processes in "
            f"groups of {captions}" + (", two of them each for objectives.itm" if least > 1 else ""),
            f"one of {valid} processes",
            "Change the number of processes or batch.contrastive_pairs",
        )
    return share


def accumulation(recipe: Recipe, world: int) -> int:
    """Returns the micro-batches an optimizer step takes on `world` processes.

    Raises:
        RecipeError: names the world sizes that divide the global batch.
    """
    size, micro = recipe.batch.global_pairs, micro_pairs(recipe, world)
    if size % (micro * world):
        valid = [n for n in range(1, size // micro + 1) if size % (micro * n) == 0]
        raise RecipeError(
            f"batch.global_pairs {size} is not a multiple of a micro-batch of {micro} x {world} processes",
            f"one of {valid} processes" if len(valid) < 40 else "a divisor of global_pairs / micro_pairs",
            "Change the number of processes or the micro-batch",
        )
    return size // (micro * world)
