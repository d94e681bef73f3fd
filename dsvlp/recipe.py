"""What a recipe may say: one frozen class a table, with units, defaults and sources.

A default stands here only where it holds for every system, or where the class belongs to one
system and the specification of that system names it. `dsvlp recipes --keys` prints this file's
keys. Contradictions that can be seen without data are refused here, on the login node.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dsvlp import catalog, config
from dsvlp.config import Strict
from dsvlp.errors import RecipeError

Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class ViT(Strict):
    """A ViT image tower: the first `layers` blocks of a timm VisionTransformer (SVL, S3)."""

    kind: Literal["vit"]
    layers: Positive
    patch_size: Positive
    width: Positive
    heads: Positive
    mlp_ratio: PositiveFloat = 4.0
    weights: str | None = Field(None, description="timm checkpoint that `pretrained = true` starts from")


class ResNet(Strict):
    """A ResNet image tower of stride 32 with a 1x1 projection and a position embedding (SVL, S4)."""

    kind: Literal["resnet"]
    name: str = Field("resnet50", description="timm model")
    weights: str | None = None
    segmentation: Literal["upsample", "dilate5", "stage4"] = Field(
        "upsample", description="where SEGL's 24x24 map comes from (S4a)"
    )
    batch_norm: Literal["frozen", "train"] = Field(
        "frozen", description="frozen: the published statistics stay, and cutting the batch changes nothing"
    )


class BERT(Strict):
    """A BERT text tower: the first `layers` layers of a transformers BertModel (SVL, S5)."""

    layers: Positive
    width: Positive
    heads: Positive
    feed_forward: Positive
    vocabulary: Positive = 30522
    max_length: Annotated[int, Field(ge=4, le=512)] = Field(
        20, description="tokens, [CLS] and [SEP] among them"
    )
    dropout: Share = 0.1
    weights: str | None = Field(None, description="hub name or folder that `pretrained = true` starts from")


class SVLModel(Strict):
    """SVL: two towers, cross-modality layers on top (specification S1 to S8)."""

    system: Literal["svl"]
    image_size: Positive = Field(description="pixels, both sides; the towers' stride divides it")
    image: Annotated[ViT | ResNet, Field(discriminator="kind")]
    text: BERT
    cross_layers: Positive = 5
    share_cross_attention: bool = Field(
        True, description="one weight set for both directions, as LXMERT; false as ViLBERT (S6a)"
    )
    visual_queries: Annotated[int, Field(ge=0)] = Field(
        0, description="SPL's N queries replace the grid; 0: no SPL"
    )
    pretrained: bool = Field(False, description="start from the towers' published `weights`")

    @property
    def stride(self) -> int:
        """Pixels of a side of the image tower's cells."""
        return self.image.patch_size if isinstance(self.image, ViT) else 32

    @model_validator(mode="after")
    def _sizes(self) -> "SVLModel":
        stride = self.stride
        if self.image_size % stride:
            below = self.image_size // stride * stride
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of the image tower's stride {stride}; "
                f"the nearest valid sizes are {below or stride} and {below + stride}"
            )
        if isinstance(self.image, ViT):
            if self.image.width != self.text.width:
                raise ValueError(f"image.width {self.image.width} differs from text.width {self.text.width}")
            if self.image.width % self.image.heads:
                raise ValueError(
                    f"image.width {self.image.width} is not divisible by image.heads {self.image.heads}"
                )
        if self.text.width % self.text.heads:
            raise ValueError(f"text.width {self.text.width} is not divisible by text.heads {self.text.heads}")
        if self.pretrained:
            for tower, table in (("image", self.image), ("text", self.text)):
                if table.weights is None:
                    raise ValueError(f"pretrained = true, but model.{tower}.weights is not set")
        return self


class MLM(Strict):
    """Masked language modelling (SVL, L_MLM): 80% [MASK], 10% other, 10% kept."""

    weight: PositiveFloat = 1.0
    view: str = "joint"
    probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    other: Literal["random", "zero"] = Field(
        "random", description="the 10% that become a random token, or id 0"
    )
    on_mismatched: bool = Field(False, description="also on mismatched pairs, as LXMERT")


class ITM(Strict):
    """Image-text matching (SVL, L_ITM): half of the pairs get another image's text."""

    weight: PositiveFloat = 1.0
    view: str = "joint"


class SSUL(Strict):
    """Semantic-visual self-supervised loss: mean colour of masked cells, L2 (SVL, SSUL)."""

    weight: PositiveFloat = 1.0
    view: str = "joint"
    probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    cell: Positive = Field(32, description="pixels of a mask cell's side; the tower's stride divides it")
    at: Literal["pre", "post"] = Field("pre", description="image states before or after fusion")
    target: Literal["normalised", "unit"] = "normalised"


class SEGL(Strict):
    """Segmentation of the visual grid, cross-entropy a cell (SVL, SEGL)."""

    weight: PositiveFloat = 1.0
    view: str = "joint"
    at: Literal["pre", "post"] = "pre"
    unlabelled: Literal["ignore", "class"] = "ignore"


class SPL(Strict):
    """Pseudo-labels by Hungarian matching of queries (SVL, SPL)."""

    weight: PositiveFloat = 1.0
    view: str = "joint"
    unmatched: Literal["ignore", "no_object"] = Field(
        "ignore", description="what queries without a label learn"
    )
    keep_area: Share = Field(0.5, description="a label stays while the crop keeps this share of its box")


class Objectives(Strict):
    """The objectives of a step; those that name the same `view` share a forward pass."""

    itm: ITM | None = None
    mlm: MLM | None = None
    ssul: SSUL | None = None
    segl: SEGL | None = None
    spl: SPL | None = None

    @model_validator(mode="before")
    @classmethod
    def _switched_off(cls, tables: Any) -> Any:
        """Drops `objectives.NAME = false`: a way to say no that works whatever the base has."""
        return {k: v for k, v in tables.items() if v is not False} if isinstance(tables, dict) else tables

    def enabled(self) -> dict[str, Strict]:
        """Returns name -> table of the objectives that the recipe has, in the order of preparation."""
        return {
            name: getattr(self, name) for name in type(self).model_fields if getattr(self, name) is not None
        }


class Source(Strict):
    """One data set of a mixture."""

    path: str
    weight: PositiveFloat = 1.0


class Synthetic(Strict):
    """The synthetic world that stands in where `data.train` is empty."""

    images: Positive = 2000
    seed: Seed = 0
    image_size: Positive = 96
    max_shapes: Annotated[int, Field(ge=1, le=4)] = 2


class Augment(Strict):
    """Training-time augmentation (SVL: description-aware flip, random resize and crop)."""

    flip: bool = True
    flip_text_words: bool = Field(
        False, description="text words (sign, letters, reads ...) forbid a flip too"
    )
    scale: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.2)

    @model_validator(mode="after")
    def _ordered(self) -> "Augment":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} is not in ascending order")
        return self


class Data(Strict):
    """Where samples come from, and how they become batches."""

    train: list[Source] = []
    validation: str | None = None
    synthetic: Synthetic = Synthetic()
    tokenizer: str | None = Field(
        None, description="folder or hub name; None: the vocabulary beside the data"
    )
    captions_per_image: Positive = 1
    augment: Augment = Augment()
    decode: Literal["cpu"] = "cpu"
    workers: Annotated[int, Field(ge=0)] = Field(
        2, description="decoding threads a process; 0: in the loader's thread"
    )
    prefetch: Positive = Field(2, description="micro-batches made ahead")
    open_shards: Positive = Field(4, description="rows are shuffled inside a window of this many shards")
    max_bad_share: Share = Field(0.01, description="share of unreadable images past which the run stops")
    timeout_seconds: PositiveFloat = 300.0


class BatchSize(Strict):
    """Pairs in an optimizer step and in a forward pass; accumulation and world size follow."""

    global_pairs: Positive
    micro_pairs: Positive


class Optimizer(Strict):
    """AdamW (SVL: specification, Data, augmentation, training)."""

    lr: PositiveFloat
    backbone_lr_factor: PositiveFloat = Field(
        1.0, description="for the two towers when they start pretrained"
    )
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    eps: PositiveFloat = 1e-8
    clip_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="0: no clipping")


class Schedule(Strict):
    """Learning rate as a pure function of the step."""

    steps: Positive
    warmup: Share = Field(0.05, description="share of the steps with a linear rise from 0")
    decay: Literal["linear", "cosine", "constant"] = "linear"


class Engine(Strict):
    """How the step is laid out on the machine. Memory and communication stand in ds_configs/."""

    zero: Literal["zero0", "zero1", "zero2", "zero3", "zero3_offload"] = "zero1"
    precision: Literal["fp32", "bf16"] = Field("bf16", description="bf16: autocast with fp32 master weights")
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
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
    model: SVLModel
    data: Data = Data()
    objectives: Objectives
    batch: BatchSize
    optimizer: Optimizer
    schedule: Schedule
    engine: Engine = Engine()
    checkpoint: Checkpoints = Checkpoints()
    watch: Watch = Watch()

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


def accumulation(recipe: Recipe, world: int) -> int:
    """Returns the micro-batches an optimizer step takes on `world` processes.

    Raises:
        RecipeError: names the world sizes that divide the global batch.
    """
    size, micro = recipe.batch.global_pairs, recipe.batch.micro_pairs
    if size % (micro * world):
        valid = [n for n in range(1, size // micro + 1) if size % (micro * n) == 0]
        raise RecipeError(
            f"batch.global_pairs {size} is not a multiple of batch.micro_pairs {micro} x {world} processes",
            f"one of {valid} processes" if len(valid) < 40 else "a divisor of global_pairs / micro_pairs",
            "Change the number of processes or batch.micro_pairs",
        )
    return size // (micro * world)
