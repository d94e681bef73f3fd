"""What a recipe's whole run costs, for a list: arithmetic, nothing measured. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from dsvlp.accounting import flops, hardware
from dsvlp.accounting.hardware import Device
from dsvlp.accounting.papers import PAPERS, Paper
from dsvlp.recipe import Recipe


@dataclass(frozen=True)
class Price:
    """A run's price.

    Attributes:
        parameters: trained numbers.
        flop_per_pair: forward and backward of a pair at full text length.
        pairs: image-text pairs of the run.
        gpu_hours: at the stated MFU of the stated card.
        paper: the published run of about the same model; None where there is none.
    """

    parameters: int
    flop_per_pair: float
    pairs: int
    gpu_hours: float
    paper: Paper | None


def price(recipe: Recipe, device: Device, mfu: float) -> Price:
    """Returns what a recipe's run costs on a kind of card that reaches a share of its peak."""
    a_pair, pairs = flops.train_flops(recipe), recipe.batch.global_pairs * recipe.schedule.steps
    hours = hardware.device_hours(pairs, device.peak_flops * mfu / a_pair)
    return Price(flops.parameters(recipe), a_pair, pairs, hours, paper_of(recipe))


def paper_of(recipe: Recipe) -> Paper | None:
    """Returns the published run of about a recipe's model; captions that share an image change no model."""
    paper = PAPERS.get(recipe.model.system)
    data = recipe.data.model_copy(update={"captions_per_image": 1})
    alone = flops.train_flops(recipe.model_copy(update={"data": data}))
    return paper if paper is not None and paper.is_like(alone) else None
