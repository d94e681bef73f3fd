"""The objectives' tables: what each may be told, and which of its values is whose."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dsvlp.config import Strict
from dsvlp.recipe.numbers import Positive, PositiveFloat, Share


class ITC(Strict):
    """Image-text contrast (FIBER, 2): each pair against the others of its batch and of a queue."""

    weight: PositiveFloat = 1.0
    view: str = "joint"
    temperature: PositiveFloat = Field(0.07, description="initial value; learnt, kept in [0.001, 1]")
    keys_gradient: bool = Field(
        True, description="the batch's keys get a gradient too; FIBER's code detaches them: false"
    )
    same_image: Literal["masked", "negative"] = Field(
        "masked", description="other captions of the own image: left out, or negatives as in FIBER's code"
    )
    queue: Annotated[int, Field(ge=0)] = Field(
        0, description="past pairs that are negatives too; FIBER's code: 4096"
    )
    queue_start: Literal["empty", "noise"] = Field(
        "empty", description="noise: unnormalised Gaussian noise counts until overwritten, as in FIBER's code"
    )
    queue_moves: Literal["step", "micro_step"] = Field(
        "step", description="step: however the batch is cut; micro_step as FIBER's code"
    )


class MLM(Strict):
    """Masked language modelling (SVL, L_MLM): 80% [MASK], 10% other, 10% kept."""

    weight: PositiveFloat = 1.0
    view: str = "joint"
    probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    other: Literal["random", "zero"] = Field(
        "random", description="the 10% that become a random token, or id 0"
    )
    on_mismatched: bool = Field(False, description="also on mismatched pairs, as LXMERT")
    tied: bool = Field(True, description="the decoder is the word table; FIBER's has its own: false")


class ITM(Strict):
    """Image-text matching: with swapped texts (SVL, L_ITM) or with hard negatives by ITC (FIBER, 2)."""

    weight: PositiveFloat = 1.0
    view: str = "joint"
    negatives: Literal["loader", "batch", "gathered", "queue"] = Field(
        "loader",
        description="loader: half of the pairs get another image's text; else each pair brings a negative "
        "image and a negative text, drawn by ITC's similarity from its micro-batch, from those of all ranks, "
        "or from ITC's queue of past pairs too, which are fetched again",
    )
    negatives_delay: Literal[1, 0] = Field(
        1,
        description="steps from the draw of a queue's pairs to their judging; 1: they are fetched while the "
        "step runs; 0, as FIBER's code: within it, each micro-batch waits on the host until they are there",
    )
    same_image: Literal["masked", "negative"] = Field(
        "masked",
        description="other pairs of the own image: never drawn, or drawn as in FIBER's code; itc's must be "
        "the same",
    )

    @property
    def of_own_batch(self) -> bool:
        """Whether a pair has negatives only where its micro-batch shows a second image."""
        return self.negatives == "batch" or (self.negatives == "queue" and self.negatives_delay == 0)

    @model_validator(mode="after")
    def _hard(self) -> "ITM":
        if self.negatives_delay == 0 and self.negatives != "queue":
            raise ValueError(
                f"negatives_delay = 0 is about negatives = 'queue', not {self.negatives!r}; leave it out"
            )
        if self.same_image == "negative" and self.negatives == "loader":
            raise ValueError("same_image = 'negative' is about hard negatives, not negatives = 'loader'")
        return self


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
    confidence: Share = Field(
        0.0, description="least of a label, where the source's `features` give the labels; else there is none"
    )


class MOP(Strict):
    """Masked object prediction: feature and class from box and context (SemVLP, Losses 2)."""

    weight: PositiveFloat = 1.0
    view: str = "joint"
    probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    classes: Positive = Field(1600, description="the detector's; at least as many as the data's table has")
    corruption: Literal["zeros", "lxmert"] = Field(
        "zeros",
        description="of masked features: zeros, or LXMERT's 80% zeros, 10% another object's, 10% kept",
    )
    regression: Literal["smooth_l1", "mse"] = Field(
        "smooth_l1", description="of features, mean over their width; mse: as UNITER"
    )
    predicted: Literal["masked", "all"] = Field(
        "masked",
        description="whose class; all: every object's, weighed by the detector's confidence, as LXMERT",
    )
    on_mismatched: bool = Field(False, description="also on mismatched pairs")


class QA(Strict):
    """Answers of the data's table to questions, on matched pairs (SemVLP, Losses 4)."""

    weight: PositiveFloat = 1.0
    view: str = "joint"


class Objectives(Strict):
    """The objectives of a step; those that name the same `view` share a forward pass."""

    itc: ITC | None = None
    itm: ITM | None = None
    mlm: MLM | None = None
    ssul: SSUL | None = None
    segl: SEGL | None = None
    spl: SPL | None = None
    mop: MOP | None = None
    qa: QA | None = None

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
