"""A run's hours beside its paper's: plain, and adjusted by the ratio of the cards' peaks. Torch-free.

A run is compared where it trains nearly the paper's model (FLOP a pair within a factor of two) on a
card whose peak is known; the rate of all its attempts, failed ones included, is projected to the
paper's number of pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsvlp.accounting import hardware
from dsvlp.accounting.charges import Charge
from dsvlp.accounting.hours import Total
from dsvlp.accounting.papers import PAPERS, Paper


@dataclass(frozen=True)
class Comparison:
    """A run beside its paper.

    Attributes:
        run: the run's name.
        paper: the published run.
        device: the run's card.
        hours: its GPU-hours for the paper's pairs, projected from its measured rate.
        plain: the paper's hours over them.
        adjusted: the same in peak FLOPs of the two cards.
    """

    run: str
    paper: Paper
    device: str
    hours: float
    plain: float
    adjusted: float


def compare(run: Total, example: Charge) -> Comparison | str:
    """Returns a run beside its system's paper; a sentence where that cannot be.

    Args:
        run: the run's sum.
        example: one of its charges, for system and card.
    """
    paper, device = PAPERS.get(example.system), hardware.find(example.device_name)
    if paper is None or paper.hours is None:
        return f"{run.name}: the paper of {example.system or 'its system'} gives no hours to stand beside."
    if device is None or not run.samples:
        return f"{run.name}: not beside the paper's hours, since it trained on no GPU with a known peak."
    price = example.flops / max(example.samples + example.redone_samples, 1)
    if not paper.is_like(price):
        return (
            f"{run.name}: not beside the paper's hours, since its pairs cost {price / 1e9:.3g} GFLOP, "
            f"the paper's {paper.flop_per_pair / 1e9:.3g}."
        )
    return Comparison(
        run.name,
        paper,
        device.name,
        run.billed * paper.pairs / run.samples,
        paper.ratio(run.samples, run.billed),
        paper.peak_adjusted(run.samples, run.billed, device),
    )


def sentence(found: Comparison | str) -> str:
    """Returns a comparison in words."""
    if isinstance(found, str):
        return found
    paper = found.paper
    return (
        f"{found.run}: the paper took {paper.hours:g} {paper.device}-hours for {paper.pairs / 1e6:g} M pairs "
        f"({paper.source}); projected from this run's measured rate they take {found.hours:.3g} "
        f"{found.device}-hours: {found.plain:.3g} times fewer, {found.adjusted:.3g} times in peak FLOPs."
    )
