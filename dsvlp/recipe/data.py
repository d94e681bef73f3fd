"""The data's tables: sources, the synthetic world, augmentation, loading."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dsvlp.config import Strict
from dsvlp.errors import RecipeError
from dsvlp.recipe.numbers import Positive, PositiveFloat, Seed, Share


class Source(Strict):
    """One data set of a mixture."""

    path: str
    weight: PositiveFloat = 1.0
    features: str | None = Field(
        None, description="its region features: a model of objects reads them, SPL takes its labels from them"
    )


class Synthetic(Strict):
    """The drawn world that stands in where `data.train` is empty."""

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
    scale: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.8, 1.2), description="of square crops; images that keep their aspect are not cropped"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Augment":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} is not in ascending order")
        return self


class Data(Strict):
    """Where samples come from, and how they become batches."""

    train: list[Source] = []
    validation: str | None = None
    validation_features: str | None = Field(None, description="the validation data's region features")
    synthetic: Synthetic | None = Field(
        None, description="drawn scenes, where `data.train` is empty; without this table it must not be"
    )
    tokenizer: str | None = Field(
        None, description="folder or hub name; None: the vocabulary beside the data"
    )
    captions_per_image: Positive = 1
    augment: Augment = Augment()
    decoder: Literal["cpu", "torchvision", "torchcodec", "nvimgcodec"] = Field(
        "cpu", description="what decodes JPEGs; all but cpu need a CUDA GPU and the library of that name"
    )
    workers: Annotated[int, Field(ge=0)] = Field(
        2, description="threads a process that read and decode images; 0: in the loader's thread"
    )
    prefetch: Positive = Field(2, description="micro-batches made ahead")
    open_shards: Positive = Field(4, description="rows are shuffled inside a window of this many shards")
    bucket_window: Positive = Field(
        16,
        description="images that keep their aspect (model.longest_side): global batches sorted by aspect "
        "together, so that each has images of like shape",
    )
    max_bad_share: Share = Field(0.01, description="share of unreadable images past which the run stops")
    timeout_seconds: PositiveFloat = 300.0

    def check_named(self) -> None:
        """Raises `RecipeError` where a run would have nothing to train on."""
        if not self.train and self.synthetic is None:
            raise RecipeError(
                "the recipe names no training data: data.train is empty",
                "data sets of `dsvlp data write`, or a table data.synthetic",
                """Add 'data.train=[{path="X.beton"}]', or data.synthetic.images=4000 for drawn scenes""",
            )
