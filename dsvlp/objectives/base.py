"""The contract of an objective: it owns its head, its corruption and its loss.

A step has three phases (System drives them):

1. `prepare(view) -> view, Targets`: corrupts a view of the batch, in recipe order. Pure in the
   batch's keys. Runs outside the model's forward, for all micro-batches of an optimizer step, on
   every rank equally often: what contrasts the pairs of all ranks gathers their names here.
2. the counts of all targets are summed over ranks and micro-batches by one all-reduce.
3. `begin(passes, targets)` asks for passes, so that those of all objectives run together, and starts
   work that can overlap with later ones (SPL's matching); ITC's leaves `passes.similarity` there;
   `loss(passes, targets, begun) -> Loss` returns a sum and a count.

What an objective needs of another is a typed field: `Batch.partner` and `Batch.matched` (ITM's
prepare swaps the texts and so runs first on its view; MLM reads `matched`). Weights live in the
recipe. A *task* (VQA, retrieval, captioning ...) is an objective that also predicts and scores.

The **best constant predictor** is what a model could reach that sees no input: `constant` adds up
what it must know of the targets, `constant_loss` turns the sum into the loss. Evaluation prints it
beside every loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsvlp.passes import Passes
from dsvlp.recipe import BatchSize
from dsvlp.types import Batch, Loss, Mode


@dataclass(frozen=True)
class Targets:
    """What an objective must predict; each objective derives its own class with its tensors.

    Attributes:
        count: float32 scalar on the batch's device, the divisor's local share.
        modes: "single", "two" -> bool in the layout of the targets: those of the pairs that are read so;
            empty for a model of one reading.
    """

    count: Tensor
    modes: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)


class Objective(nn.Module):
    """Base of all objectives. Derived classes keep only their head as parameters.

    Attributes:
        name: the recipe's table, and the prefix of its metrics.
        view: the view of the batch that it edits and reads.
        seconds: what its work on the host took since the start, by name, for the step's time split.
        gathered: the micro-batches of all ranks are one contrastive batch (`batch.contrastive_pairs`).
    """

    name: str

    def __init__(self, view: str) -> None:
        super().__init__()
        self.view = view
        self.seconds: dict[str, float] = {}
        self.gathered = False

    def told(self, batch: BatchSize) -> None:
        """Is told, before training, how many pairs go together."""
        self.gathered = batch.contrastive_pairs is not None

    def prepare(self, view: Batch) -> tuple[Batch, Targets]:
        """Returns the corrupted view and the targets. No parameter is used here."""
        raise NotImplementedError

    def begin(self, passes: Passes, targets: Any) -> Any:
        """Starts what may overlap with the passes to come; its result goes to `loss`."""
        return None

    def loss(self, passes: Passes, targets: Any, begun: Any = None) -> Loss:
        """Returns the summed loss of this micro-batch, its count and metrics."""
        raise NotImplementedError

    def after_step(self, finite: Tensor) -> None:
        """Moves what the objective remembers between steps (ITC's queue) once the weights have changed.

        Every rank calls it after each training step.

        Args:
            finite: bool scalar on the device; False: the step changed no weight, nor may this change what
                came of it. What moves as the data do (ITM's pool) moves on.
        """

    def constant(self, targets: Any) -> Tensor:
        """Returns sufficient statistics of the targets, float64, to be summed over a data set."""
        raise NotImplementedError

    def constant_loss(self, statistics: Tensor) -> dict[str, float]:
        """Returns "loss" and, where it means something, "accuracy" of the best constant predictor."""
        raise NotImplementedError


def class_constant(statistics: Tensor) -> dict[str, float]:
    """Returns cross-entropy (nats) and accuracy of always predicting the empirical distribution.

    Args:
        statistics: float64 [classes], how often each class is the target.
    """
    total = statistics.sum().clamp(min=1)
    share = statistics[statistics > 0] / total
    return {
        "loss": 0.0 - float((share * share.log()).sum()),
        "accuracy": float(statistics.max() / total),
    }


def class_counts(labels: Tensor, weight: Tensor, classes: int) -> Tensor:
    """Returns the summed weight of each class, float64 [classes]; labels of weight 0 may lie outside."""
    counts = torch.zeros(classes, dtype=torch.float64, device=labels.device)
    return counts.index_add_(0, labels.flatten().clamp(0, classes - 1), weight.flatten().double())


def classified(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    count: Tensor,
    judged: Tensor | None = None,
    modes: Mapping[str, Tensor] | None = None,
) -> Loss:
    """Returns the weighted cross-entropy summed over targets, with accuracy and predictions.

    Args:
        logits: float32 [..., C].
        labels: int64 [...]; where the weight is 0 they may lie below 0.
        weight: float32 [...].
        count: the loss's divisor, this micro-batch's share.
        judged: weight of the accuracy where it is another than the loss's.
        modes: `Targets.modes`.
    """
    entropy = F.cross_entropy(logits.flatten(0, -2), labels.clamp(min=0).flatten(), reduction="none")
    losses = entropy.view_as(weight) * weight
    predictions = logits.detach().argmax(-1)
    return Loss(
        losses.sum(),
        count,
        {
            "accuracy": accuracy(predictions, labels, weight if judged is None else judged),
            **loss_by_mode(losses, weight, modes or {}),
        },
        predictions,
    )


def accuracy(predictions: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (weight of the correct predictions, weight of all), float32 scalars; all of one shape."""
    return ((predictions == labels) * weight).sum(), weight.sum()


def counted_pairs(view: Batch, on_mismatched: bool = False) -> Tensor:
    """Returns bool [P]: the pairs of a view whose targets count; of mismatched ones only where asked for."""
    pairs = view.weight > 0
    if view.mismatched is not None and not on_mismatched:
        pairs = pairs & ~view.mismatched
    return pairs


def mode_parts(mode: Mode | None, pair: Tensor) -> dict[str, Tensor]:
    """Returns what `Targets.modes` says of targets.

    Args:
        mode: the view's.
        pair: int64 in the layout of the targets, each one's place among the view's pairs.
    """
    if mode == "halves":
        return {"single": pair % 2 == 0, "two": pair % 2 == 1}
    return {} if mode is None else {mode: torch.ones_like(pair, dtype=torch.bool)}


def loss_by_mode(
    losses: Tensor, weight: Tensor, modes: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns the metrics "loss_single" and "loss_two" of weighted losses and their weights, both [...]."""
    losses = losses.detach()
    return {f"loss_{name}": ((losses * part).sum(), (weight * part).sum()) for name, part in modes.items()}


def capacity(positions: int, share: float) -> int:
    """Returns room for a share of positions that is drawn one by one: the mean and eight deviations.

    Were it ever full, the positions beyond would not count.
    """
    deviation = math.sqrt(positions * share * (1 - share))
    return min(positions, math.ceil(positions * share + 8 * deviation))


def first_of(chosen: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Returns int64 [K] places of what is chosen, padded with others, and float32 [K], 1 at the chosen.

    A fixed number, so that nothing waits for the device.

    Args:
        chosen: bool [positions].
        room: K.
    """
    places = chosen.byte().argsort(descending=True, stable=True)[:room]
    return places, chosen[places].float()
