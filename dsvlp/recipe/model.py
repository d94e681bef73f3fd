"""The models' tables: one class a tower and a system, with sizes, units and sources."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dsvlp.config import Strict
from dsvlp.recipe.numbers import Decay, Positive, PositiveFloat, Share
from dsvlp.types import Filter


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


class Swin(Strict):
    """A Swin image tower, timm's SwinTransformer (FIBER, 1.1); the defaults are Swin-Base's."""

    patch_size: Positive = 4
    width: Positive = Field(128, description="of the first stage; each further stage doubles it")
    depths: tuple[Positive, ...] = (2, 2, 18, 2)
    heads: tuple[Positive, ...] = (4, 8, 16, 32)
    window: Positive | None = Field(
        None, description="cells of a window's side; None: the last stage's whole grid, as FIBER's code"
    )
    mlp_ratio: PositiveFloat = 4.0
    drop_path: Decay = Field(0.1, description="of the last block; rises linearly from 0")
    weights: str | None = Field(None, description="timm checkpoint that `pretrained = true` starts from")

    @model_validator(mode="after")
    def _stages(self) -> "Swin":
        if len(self.depths) != len(self.heads):
            raise ValueError(f"depths has {len(self.depths)} stages, heads {len(self.heads)}")
        for stage, heads in enumerate(self.heads):
            if (self.width << stage) % heads:
                raise ValueError(
                    f"stage {stage + 1} of width {self.width << stage} is not divisible by its {heads} heads"
                )
        return self

    @property
    def stride(self) -> int:
        """Pixels of a side of the last stage's cells."""
        return self.patch_size << (len(self.depths) - 1)

    @property
    def final_width(self) -> int:
        """Width of the last stage."""
        return self.width << (len(self.depths) - 1)

    def window_at(self, image_size: int) -> int:
        """Returns the window's side at an image size."""
        return self.window or image_size // self.stride

    def fits(self, image_size: int) -> bool:
        """Returns whether every stage's grid is cut into whole windows, or is no larger than one."""
        if image_size % self.stride or not image_size:
            return False
        grids = [image_size // self.patch_size >> stage for stage in range(len(self.depths))]
        window = self.window_at(image_size)
        return all(grid <= window or grid % window == 0 for grid in grids)

    def check_size(self, image_size: int) -> None:
        """Raises `ValueError` with the nearest valid sizes where the windows do not divide the grids."""
        if self.fits(image_size):
            return
        below = next((size for size in range(image_size, 0, -1) if self.fits(size)), None)
        above = next(size for size in range(image_size, image_size * 2 + 65 * self.stride) if self.fits(size))
        near = f"{below} and {above}" if below else str(above)
        raise ValueError(
            f"image_size {image_size} is not cut into whole windows of {self.window_at(image_size)} cells at "
            f"every stage; the nearest valid sizes are {near}"
        )


class RoBERTa(Strict):
    """A RoBERTa text tower (FIBER, 1.3); the defaults are RoBERTa-base's."""

    layers: Positive = 12
    width: Positive = 768
    heads: Positive = 12
    feed_forward: Positive = 3072
    vocabulary: Positive = 50265
    positions: Positive = Field(514, description="rows of the position table, padding_id + 1 of them unused")
    padding_id: Annotated[int, Field(ge=0)] = Field(1, description="the tokenizer's must be the same")
    max_length: Annotated[int, Field(ge=4)] = Field(40, description="tokens, <s> and </s> among them")
    dropout: Share = 0.1
    weights: str | None = Field(None, description="hub name or folder that `pretrained = true` starts from")

    @model_validator(mode="after")
    def _sizes(self) -> "RoBERTa":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by its {self.heads} heads")
        most = self.positions - self.padding_id - 1
        if self.max_length > most:
            raise ValueError(f"max_length {self.max_length} is more than the position table's {most}")
        return self


class Towers(Strict):
    """What FIBER and METER have in common: a Swin and a RoBERTa tower."""

    image_size: Positive = Field(description="pixels, both sides; the windows divide every stage's grid")
    resize: Filter = Field("bilinear", description="of images to it, antialiased; FIBER's code: bicubic")
    image: Swin = Swin()
    text: RoBERTa = RoBERTa()
    pretrained: bool = Field(False, description="start from the towers' published `weights`")

    @property
    def stride(self) -> int:
        """Pixels of a side of the image tower's cells."""
        return self.image.stride

    @property
    def visual_queries(self) -> int:
        """SPL's queries: none."""
        return 0

    @model_validator(mode="after")
    def _towers(self) -> Self:
        self.image.check_size(self.image_size)
        if self.pretrained:
            for tower, table in (("image", self.image), ("text", self.text)):
                if table.weights is None:
                    raise ValueError(f"pretrained = true, but model.{tower}.weights is not set")
        return self


class BackboneFusion(Strict):
    """Where FIBER's two towers read each other (FIBER, 1.2 and 1.4)."""

    plan: tuple[tuple[int, int, int], ...] = Field(
        ((3, 14, 6), (3, 15, 7), (3, 16, 8), (3, 17, 9), (4, 0, 10), (4, 1, 11)),
        description="(stage from 1, its block from 0, text layer from 0), ascending",
    )
    image_query_norm: bool = Field(
        True, description="LayerNorm on the image's query: coarse and fine v3; fine v2 has none"
    )


class FIBERModel(Towers):
    """FIBER: gated cross-attention inside Swin and RoBERTa."""

    system: Literal["fiber"]
    fusion: BackboneFusion = BackboneFusion()
    captioning: bool = Field(
        False, description="the projections of the final image tokens that causal text reads (1.6)"
    )

    @model_validator(mode="after")
    def _plan(self) -> "FIBERModel":
        plan, depths = self.fusion.plan, self.image.depths
        if not plan:
            raise ValueError("fusion.plan is empty; name at least one (stage, block, text layer)")
        for stage, at, layer in plan:
            if not 1 <= stage <= len(depths) or not 0 <= at < depths[stage - 1]:
                raise ValueError(
                    f"fusion.plan names block {at} of stage {stage}; there are stages 1 to {len(depths)} of "
                    f"{list(depths)} blocks, counted from 0"
                )
            if not 0 <= layer < self.text.layers:
                raise ValueError(
                    f"fusion.plan names text layer {layer} of {self.text.layers}, counted from 0"
                )
        for one, two in pairwise(plan):
            if one[:2] >= two[:2] or one[2] >= two[2]:
                raise ValueError(f"fusion.plan is not ascending in both towers at {list(one)}, {list(two)}")
        return self


class TopFusion(Strict):
    """METER's fusion: co-attention layers on top of the finished towers."""

    layers: Positive = 6
    heads: Positive = 12
    feed_forward: Positive = 3072
    dropout: Share = 0.1


class METERModel(Towers):
    """METER: FIBER's two towers with the fusion on top of them, its rival in the paper's comparison."""

    system: Literal["meter"]
    fusion: TopFusion = TopFusion()

    @model_validator(mode="after")
    def _heads(self) -> "METERModel":
        if self.text.width % self.fusion.heads:
            raise ValueError(
                f"text.width {self.text.width} is not divisible by {self.fusion.heads} fusion heads"
            )
        return self
