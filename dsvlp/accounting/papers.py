"""What the papers' own runs cost, for a ratio beside ours. Torch-free.

Hours of different cards are compared in two ways: as they are, and adjusted by the cards' peaks, which
leaves what software gained.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsvlp.accounting import hardware


@dataclass(frozen=True)
class Paper:
    """A published run.

    Attributes:
        device: its card.
        pairs: image-text pairs that it saw.
        source: where it says so.
        flop_per_pair: forward and backward in the paper's configuration, by formula at full text length, an
            image encoded for each pair.
        hours: GPU-hours that it states; None: none.
        estimate: GPU-hours by others' estimate, which nothing is compared with.
        cards: how many it ran on, where it states no hours.
    """

    device: str
    pairs: float
    source: str
    flop_per_pair: float
    hours: float | None = None
    estimate: float | None = None
    cards: int | None = None

    def is_like(self, flop_per_pair: float) -> bool:
        """Returns whether a run's pairs cost about what the paper's do: within a factor of two."""
        return 0.5 < flop_per_pair / self.flop_per_pair < 2

    def stated(self) -> str:
        """Returns what is known of its hours, in words."""
        if self.hours is not None:
            return f"{self.hours:g} {self.device}-h"
        if self.estimate is not None:
            return f"about {self.estimate:,.0f} {self.device}-h (estimate)"
        return f"not stated ({self.cards} {self.device})"

    def hours_for(self, pairs: float) -> float:
        """Returns the hours at the paper's rate for another number of pairs. It states its hours."""
        assert self.hours is not None
        return self.hours * pairs / self.pairs

    def ratio(self, pairs: float, gpu_hours: float) -> float:
        """Returns how many of the paper's GPU-hours one of ours replaces."""
        return self.hours_for(pairs) / gpu_hours

    def peak_adjusted(self, pairs: float, gpu_hours: float, device: hardware.Device) -> float:
        """Returns the same in peak FLOPs: hours x peak of the paper's card / hours x peak of ours."""
        return self.ratio(pairs, gpu_hours) * hardware.named(self.device).peak_flops / device.peak_flops


# FIBER's paper names no card; its kin's rate would be about 3,300 A100-hours, which is no source.
PAPERS = {
    "svl": Paper("V100", 75e6, "SVL, 15 epochs of 5 M pairs", 117e9, hours=470.0),
    "pixelbert": Paper(
        "V100", 223.7e6, "Pixel-BERT, 40 epochs of 5.6 M pairs", 483e9, estimate=4000.0, cards=64
    ),
    "semvlp": Paper("V100", 527e6, "SemVLP, 40 epochs of 13.2 M pairs", 71.6e9, cards=4),
}
