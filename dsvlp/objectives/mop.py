"""Masked object prediction: feature and class of hidden objects from box and context (SemVLP, Losses 2).

Legend: I images, P pairs, N objects, K capacity for masked objects, F feature width, C classes, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsvlp import seed
from dsvlp.errors import RecipeError
from dsvlp.layers.attention import NORM_EPS, initialise
from dsvlp.objectives.base import (
    Objective,
    Targets,
    accuracy,
    capacity,
    class_constant,
    class_counts,
    counted_pairs,
    first_of,
    loss_by_mode,
    mode_parts,
)
from dsvlp.passes import Passes
from dsvlp.recipe import MOP as Table
from dsvlp.recipe import SemVLPModel
from dsvlp.types import Batch, DataFacts, Loss

NO_CLASS = -1
ZERO_SHARE, OTHER_SHARE = 0.8, 0.1  # of the chosen objects by LXMERT's reading; the last tenth is kept


@dataclass(frozen=True)
class MOPTargets(Targets):
    """The masked objects, padded to a fixed capacity so that nothing waits for the device.

    Attributes:
        positions: int64 [K] indices into the flattened [P, N].
        features: [K, F] the true features there, as stored.
        labels: int64 [K] the detector's classes.
        weight: float32 [K], 1 at masked objects, 0 at the capacity's rest.
        class_weight: float32 [K], of the classes.
    """

    positions: Tensor
    features: Tensor
    labels: Tensor
    weight: Tensor
    class_weight: Tensor


class MOP(Objective):
    """Hides features and predicts them, and the detector's classes, at the fused objects of matched pairs.

    Boxes stay. [IMG] is no object and is never hidden. Features are hidden in mismatched pairs too, although
    nothing is predicted there by default: were they hidden in true pairs alone, a hole would tell ITM the
    answer. What both predictions add up to is divided by the masked objects: with `predicted = "all"` this is
    LXMERT's mean over all objects with its weight of 1 / 0.15.

    Args:
        table: the recipe's table.
        width: D.
        features: F.
    """

    name = "mop"

    def __init__(self, table: Table, width: int, features: int) -> None:
        super().__init__(table.view)
        self.table = table
        self.features = features
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=NORM_EPS))
        self.regression = nn.Linear(width, features)
        self.classes = nn.Linear(width, table.classes)
        initialise(self, width)

    @classmethod
    def from_recipe(cls, table: Table, model_table: SemVLPModel, model: Any, facts: DataFacts) -> MOP:
        """Returns the objective for a model of objects.

        Raises:
            RecipeError: the data's features have no classes, or more than the table.
        """
        if facts.objects is None:
            raise RecipeError(
                "objectives.mop, but the data's region features have no classes",
                "features written with the detector's classes",
                "Write them again with classes, or set objectives.mop=false",
            )
        found = len(facts.objects.names)
        if found > table.classes:
            raise RecipeError(
                f"the data's region features have {found} classes ({facts.objects.name}), "
                f"objectives.mop.classes is {table.classes}",
                "at least as many as the data has",
                f"Set objectives.mop.classes={found}",
            )
        return cls(table, model.width, model.feature_width)

    def prepare(self, view: Batch) -> tuple[Batch, MOPTargets]:
        """Returns the view with some objects' features hidden, and what was hidden."""
        there = view.image_mask
        if there is None:
            there = torch.ones(view.images.shape[:2], dtype=torch.bool, device=view.images.device)
        count = there.shape[1]
        hidden = seed.uniform(view.image_keys, "mop.select", count) < self.table.probability
        hidden = hidden & there
        features, boxes = view.images[..., : self.features], view.images[..., self.features :]
        seen = torch.where(hidden[..., None], self._corrupted(view.image_keys, features), features)
        return replace(view, images=torch.cat((seen, boxes), -1)), self._targets(
            view, features, hidden, there
        )

    def _corrupted(self, keys: Tensor, features: Tensor) -> Tensor:
        """Returns features [I, N, F] as if every object had been chosen.

        LXMERT's other object is one of any image of the data; here it is one of the same image, so that the
        draw depends on the image's key alone.
        """
        zeros = torch.zeros_like(features)
        if self.table.corruption == "zeros":
            return zeros
        count = features.shape[1]
        draw = seed.uniform(keys, "mop.replace", count)[..., None]
        other = seed.integers(keys, "mop.other", count, count)[..., None].expand_as(features)
        out = torch.where(draw < ZERO_SHARE + OTHER_SHARE, features.gather(1, other), features)
        return torch.where(draw < ZERO_SHARE, zeros, out)

    def _targets(self, view: Batch, features: Tensor, hidden: Tensor, there: Tensor) -> MOPTargets:
        """Returns the targets of features [I, N, F], where hidden, of those that are there: bool [I, N]."""
        rows, count = view.pairs[:, 0], hidden.shape[1]
        counted = counted_pairs(view, self.table.on_mismatched)[:, None]
        masked = (hidden[rows] & counted).flatten()  # [P N]
        if self.table.predicted == "all":
            positions = torch.arange(len(masked), device=masked.device)
            weight = masked.float()
        else:
            positions, weight = first_of(masked, capacity(len(masked), self.table.probability))
        images, places = rows[positions // count], positions % count
        labels = torch.full_like(images, NO_CLASS)
        if view.object_labels is not None:
            labels = view.object_labels[images, places]
        class_weight = weight
        if self.table.predicted == "all":
            assert view.object_confidences is not None, "the loader brings them with the features"
            class_weight = (there[rows] & counted).flatten() * view.object_confidences[images, places]
        return MOPTargets(
            weight.sum(),
            positions,
            features[images, places],
            labels,
            weight,
            class_weight * (labels != NO_CLASS),
            modes=mode_parts(view.mode, positions // count),
        )

    def begin(self, passes: Passes, targets: MOPTargets) -> None:
        """Asks for the view's fused pass."""
        passes.ask(self.view)

    def loss(self, passes: Passes, targets: MOPTargets, begun: None = None) -> Loss:
        """Returns regression and cross-entropy summed over masked objects, computed at no other."""
        image = passes.fused(self.view).image
        assert image is not None
        count = image.tokens.shape[1] - 1  # [IMG] comes first
        states = image.tokens[targets.positions // count, targets.positions % count + 1]  # [K, D]
        states = self.transform(states)
        distance = F.smooth_l1_loss if self.table.regression == "smooth_l1" else F.mse_loss
        errors = distance(self.regression(states).float(), targets.features.float(), reduction="none").mean(1)
        logits = self.classes(states).float()  # [K, C]
        entropy = F.cross_entropy(logits, targets.labels.clamp(min=0), reduction="none")
        regression, classes = errors * targets.weight, entropy * targets.class_weight
        losses = regression + classes
        return Loss(
            losses.sum(),
            targets.count,
            {
                "accuracy": accuracy(logits.detach().argmax(1), targets.labels, targets.class_weight),
                "loss_feature": (regression.detach().sum(), targets.weight.sum()),
                "loss_class": (classes.detach().sum(), targets.class_weight.sum()),
                **loss_by_mode(losses, targets.weight, targets.modes),
            },
        )

    def constant(self, targets: MOPTargets) -> Tensor:
        """Returns float64 [C + 1 + 2 F]: each class's targets, the number of masked objects, the sums of
        their features and of the squares."""
        features, weight = targets.features.double(), targets.weight.double()
        classes = class_counts(targets.labels, targets.class_weight, self.table.classes)
        return torch.cat((classes, weight.sum()[None], weight @ features, weight @ features.square()))

    def constant_loss(self, statistics: Tensor) -> dict[str, float]:
        """Returns loss and accuracy of always predicting the classes' shares and the mean feature.

        By smooth-L1 the best constant's loss is at most this, and this where features stay within 1 of their
        mean. Exactly it would take the features' whole distribution. Smooth-L1 is a concave function of the
        squared error, so the mean's loss is at most that of the deviation (Jensen).
        """
        classes, count, total, squares = statistics.split(
            (self.table.classes, 1, self.features, self.features)
        )
        count = count.clamp(min=1)
        variance = (squares / count - (total / count) ** 2).clamp(min=0)
        if self.table.regression == "smooth_l1":
            regression = F.smooth_l1_loss(variance.sqrt(), torch.zeros_like(variance))
        else:
            regression = variance.mean()
        best = class_constant(classes)
        return best | {"loss": float(regression) + best["loss"] * float(classes.sum() / count)}
