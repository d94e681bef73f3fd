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
        hours: GPU-hours.
        device: of this card.
        pairs: image-text pairs that it saw.
        source: where it says so.
        flop_per_pair: forward and backward in the paper's configuration, by formula at full text length.
    """

    hours: float
    device: str
    pairs: float
    source: str
    flop_per_pair: float

    def is_like(self, flop_per_pair: float) -> bool:
        """Returns whether a run's pairs cost about what the paper's do: within a factor of two."""
        return 0.5 < flop_per_pair / self.flop_per_pair < 2

    def hours_for(self, pairs: float) -> float:
        """Returns the hours at the paper's rate for another number of pairs."""
        return self.hours * pairs / self.pairs

    def ratio(self, pairs: float, gpu_hours: float) -> float:
        """Returns how many of the paper's GPU-hours one of ours replaces."""
        return self.hours_for(pairs) / gpu_hours

    def peak_adjusted(self, pairs: float, gpu_hours: float, device: hardware.Device) -> float:
        """Returns the same in peak FLOPs: hours x peak of the paper's card / hours x peak of ours."""
        return self.ratio(pairs, gpu_hours) * hardware.named(self.device).peak_flops / device.peak_flops


# FIBER's paper gives no hours; its kin's rate would be about 3,300 A100-hours, which is no source.
PAPERS = {"svl": Paper(470.0, "V100", 75e6, "SVL, 15 epochs of 5 M pairs", 117e9)}
