"""The tables of models of one Transformer: Pixel-BERT and SemVLP."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dsvlp.config import Strict
from dsvlp.recipe.model import BERT
from dsvlp.recipe.numbers import Positive


class CNN(Strict):
    """Pixel-BERT's CNN: timm's, of stride 32 (specification P1, P2)."""

    name: str = Field("resnet50", description="timm model; the paper: resnet50, ResNeXt-152")
    weights: str | None = Field(None, description="timm checkpoint that `pretrained = true` starts from")
    batch_norm: Literal["frozen", "train", "sync"] = Field(
        "frozen",
        description="frozen: the published statistics stay, and cutting the batch changes nothing; train: a "
        "micro-batch's own, as SOHO; sync: those of a micro-step's images on all ranks, so keep "
        "batch.micro_pairs times ranks where either changes",
    )


class PixelBERTModel(Strict):
    """Pixel-BERT: a CNN's pixels and words in one BERT (specification P1 to P8)."""

    system: Literal["pixelbert"]
    image_size: Positive = Field(
        description="pixels: of the shorter side where `longest_side` is set, else both"
    )
    longest_side: Positive | None = Field(
        None,
        description="pixels: images keep their aspect, the shorter side is image_size unless the longer one "
        "would pass this; None: square crops",
    )
    image: CNN = CNN()
    text: BERT
    pixels: Annotated[int, Field(ge=0)] = Field(
        100, description="cells of an image that a training step keeps, drawn anew each time (P7); 0: all"
    )
    positions: Literal["none", "sine", "learned"] = Field(
        "none", description="of pixels; the paper has none, its kin add one (P4a)"
    )
    norm_pixels: bool = Field(
        False, description="LayerNorm on pixels before the Transformer, as on words; the paper has none (P4b)"
    )
    pretrained: bool = Field(False, description="start from the CNN's and BERT's published `weights`")

    @property
    def stride(self) -> int:
        """Pixels of a side of a token's cell: the CNN's 32 and the 2x2 pool."""
        return 64

    @property
    def visual_queries(self) -> int:
        """SPL's queries: none."""
        return 0

    @property
    def cells(self) -> int:
        """Cells of an image; what the stride cuts is left out (P3)."""
        return _cells_along(self.image_size) ** 2

    @property
    def cells_of_longest_side(self) -> int:
        """Cells along the longest side that an image may have."""
        return _cells_along(self.longest_side or self.image_size)

    @property
    def most_cells(self) -> int:
        """Cells of the largest image."""
        return _cells_along(self.image_size) * self.cells_of_longest_side

    @model_validator(mode="after")
    def _sizes(self) -> "PixelBERTModel":
        if not self.cells:
            raise ValueError(f"image_size {self.image_size} is less than a cell of {self.stride} pixels")
        if self.longest_side is not None and self.longest_side < self.image_size:
            raise ValueError(
                f"longest_side {self.longest_side} is less than image_size {self.image_size}, the shorter one"
            )
        if self.positions == "sine" and self.text.width % 4:
            raise ValueError(f"positions = 'sine' needs a text.width that 4 divides, not {self.text.width}")
        if self.text.width % self.text.heads:
            raise ValueError(f"text.width {self.text.width} is not divisible by text.heads {self.text.heads}")
        if self.pretrained:
            for tower, table in (("image", self.image), ("text", self.text)):
                if table.weights is None:
                    raise ValueError(f"pretrained = true, but model.{tower}.weights is not set")
        return self


def _cells_along(pixels: int) -> int:
    """Returns the cells along a side: the CNN's stride of 32 rounds up, the 2x2 pool down."""
    return -(-pixels // 32) // 2


class SemVLPModel(Strict):
    """SemVLP: one shared transformer over words and objects (specification M1 to M7)."""

    system: Literal["semvlp"]
    objects: Positive = Field(100, description="objects of an image, always as many (M4)")
    feature_width: Positive = Field(2048, description="of an object's region feature")
    text: BERT
    cross_from: Annotated[int, Field(ge=0)] = Field(
        6, description="two-stream: the image stream reads the text's last states above this layer (M7b)"
    )
    cross_start: Literal["copy", "random"] = Field(
        "copy", description="cross-attention starts as its layer's self-attention, or drawn (M7c)"
    )
    box_fuse: Literal["concat", "avg_ln"] = Field(
        "concat", description="avg_ln: feature and box projected, normed and averaged, as LXMERT (M4a)"
    )
    norm_features: bool = Field(
        False, description="features without their mean and size; drawn or poor ones are hardly learnt else"
    )
    mode_schedule: Literal["halves", "step", "bernoulli", "single", "two"] = Field(
        "halves",
        description="halves: every micro-batch has pairs of both modes; step: modes take turns; bernoulli: "
        "drawn for each step; single, two: one mode alone, for ablations",
    )
    inference: Literal["single", "two"] = Field("two", description="the mode of evaluation and serving")
    pretrained: bool = Field(False, description="start from BERT's published `text.weights`")

    @property
    def visual_queries(self) -> int:
        """SPL's queries: none."""
        return 0

    @model_validator(mode="after")
    def _sizes(self) -> "SemVLPModel":
        if self.text.width % self.text.heads:
            raise ValueError(f"text.width {self.text.width} is not divisible by text.heads {self.text.heads}")
        if self.cross_from >= self.text.layers:
            raise ValueError(
                f"cross_from {self.cross_from} leaves none of {self.text.layers} layers for cross-attention"
            )
        if self.pretrained and self.text.weights is None:
            raise ValueError("pretrained = true, but model.text.weights is not set")
        return self
