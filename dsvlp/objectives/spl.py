"""Pseudo-labels for learned queries by Hungarian matching (SVL, SPL).

The matching runs on the host while the cross-modality layers run on the device: `begin` starts an
asynchronous copy of the costs and hands it to worker threads (SciPy releases the interpreter's
lock), `loss` joins them. It is never stale.

Legend: I images, Q queries, K labels (padded), C classes.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from dsvlp.errors import RecipeError
from dsvlp.layers.attention import initialise
from dsvlp.objectives.base import Objective, Targets, class_constant, class_counts, classified
from dsvlp.objectives.grid import row_weight
from dsvlp.passes import Passes
from dsvlp.recipe import SPL as Table
from dsvlp.types import Batch, DataFacts, Loss

NO_LABEL = -1
NO_OBJECT_WEIGHT = 0.1  # DETR's eos_coef
WORKERS = 2


@dataclass(frozen=True)
class SPLTargets(Targets):
    """Labels int64 [I, K], -1 where there is none, and weights float32 [I] of the images."""

    labels: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Matching:
    """Class logits float32 [I, Q, C] and the matching that workers find for them: [I, Q] label ordinals."""

    logits: Tensor
    futures: list["Future[tuple[np.ndarray, float]]"]


class SPL(Objective):
    """Classifies the model's queries after matching each image's labels to them at least cost -p(c).

    With fewer labels than queries the matching is rectangular; the queries left over are ignored, or
    learn "no object" with weight 0.1. An image without any label counts as not annotated. The labels
    that a crop removed are taken away by the loader (`keep_area`).

    Args:
        table: the recipe's table.
        width: D.
        queries: Q.
        classes: classes of the boxes' table.
    """

    name = "spl"

    def __init__(self, table: Table, width: int, queries: int, classes: int) -> None:
        super().__init__(table.view)
        self.queries = queries
        self.no_object = classes if table.unmatched == "no_object" else None
        self.classes = classes + (self.no_object is not None)
        self.head = nn.Linear(width, self.classes)
        initialise(self.head, width)
        self.seconds = {"matching": 0.0, "waiting": 0.0}
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="spl")

    @classmethod
    def from_recipe(cls, table: Table, model_table: Any, model: Any, facts: DataFacts) -> "SPL":
        """Returns the objective, as wide as the boxes' label table.

        Raises:
            RecipeError: the data has no labelled boxes.
        """
        if facts.boxes is None:
            raise RecipeError(
                "objectives.spl, but the data has no labelled boxes", "a data set written with boxes"
            )
        return cls(table, model.width, model.visual_queries, len(facts.boxes.names))

    def prepare(self, view: Batch) -> tuple[Batch, SPLTargets]:
        """Returns the view as it is, and the labels; the count is known before the matching."""
        labels = view.box_labels
        if labels is None:
            labels = torch.full((len(view.images), 1), NO_LABEL, device=view.images.device)
        found = (labels != NO_LABEL).sum(1)
        matched = found.clamp(max=self.queries).float()
        if self.no_object is not None:
            matched = matched + NO_OBJECT_WEIGHT * (self.queries - matched) * (found > 0)
        weight = row_weight(view, "pre")
        return view, SPLTargets((matched * weight).sum(), labels, weight)

    def begin(self, passes: Passes, targets: SPLTargets) -> Matching:
        """Returns the class logits, and the matching under way."""
        logits = self.head(passes.image(self.view).tokens).float()
        with torch.no_grad():
            costs = to_host(label_costs(logits, targets.labels))
            valid = to_host(targets.labels != NO_LABEL)
        arrived = None
        if logits.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        chunks = np.array_split(np.arange(len(costs)), WORKERS)
        futures = [self._pool.submit(match_rows, costs, valid, chunk, arrived) for chunk in chunks]
        return Matching(logits, futures)

    def loss(self, passes: Passes, targets: SPLTargets, begun: Matching | None = None) -> Loss:
        """Returns the cross-entropy of the matched queries, summed over images."""
        assert begun is not None
        ordinals = self._join(begun)
        labels, weight = self._assigned(targets, ordinals)
        matched = (ordinals != NO_LABEL) * targets.weight[:, None]
        return classified(begun.logits, labels, weight, targets.count, judged=matched)

    def _join(self, begun: Matching) -> Tensor:
        """Returns the label ordinal of each query [I, Q] on the logits' device; waits for the workers."""
        start = time.perf_counter()
        found = [future.result() for future in begun.futures]
        self.seconds["waiting"] += time.perf_counter() - start
        self.seconds["matching"] += sum(seconds for _, seconds in found)
        ordinals = torch.from_numpy(np.concatenate([rows for rows, _ in found]))
        if begun.logits.is_cuda:
            ordinals = ordinals.pin_memory()
        return ordinals.to(begun.logits.device, non_blocking=True)

    def _assigned(self, targets: SPLTargets, ordinals: Tensor) -> tuple[Tensor, Tensor]:
        """Returns each query's class [I, Q] and its weight [I, Q], 0 where it learns nothing."""
        matched = ordinals != NO_LABEL
        classes = targets.labels.gather(1, ordinals.clamp(min=0)).clamp(min=0)
        weight = matched.float()
        if self.no_object is not None:
            annotated = (targets.labels != NO_LABEL).any(1, keepdim=True)
            classes = torch.where(matched, classes, self.no_object)
            weight = torch.where(matched, weight, NO_OBJECT_WEIGHT * annotated)
        return classes, weight * targets.weight[:, None]

    def constant(self, targets: SPLTargets) -> Tensor:
        """Returns the weight of each class among the queries' targets, float64 [C].

        A constant predictor leaves all queries alike, so that any min(Q, labels) labels are matched;
        where labels exceed queries, each counts its share.
        """
        valid = (targets.labels != NO_LABEL).float()
        found = valid.sum(1, keepdim=True)
        share = self.queries / found.clamp(min=self.queries)
        counts = class_counts(targets.labels, valid * share * targets.weight[:, None], self.classes)
        if self.no_object is not None:
            left = (self.queries - found).clamp(min=0) * (found > 0) * targets.weight[:, None]
            counts[self.no_object] += NO_OBJECT_WEIGHT * left.sum()
        return counts

    def constant_loss(self, statistics: Tensor) -> dict[str, float]:
        """Returns loss and accuracy of always predicting the classes' shares."""
        return class_constant(statistics)


def label_costs(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns -p(label) float32 [I, Q, K] of each query and label; columns of padding mean nothing."""
    index = labels.clamp(min=0)[:, None].expand(-1, logits.shape[1], -1)
    return -logits.softmax(-1).gather(2, index)


def to_host(tensor: Tensor) -> Tensor:
    """Returns a copy on the host that may still be arriving: wait for an event recorded after it."""
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def match_rows(
    costs: Tensor, valid: Tensor, chunk: np.ndarray, arrived: torch.cuda.Event | None
) -> tuple[np.ndarray, float]:
    """Returns the label ordinal of each query [rows, Q] for the images of `chunk`, and the seconds it took.

    -1 stands for an unmatched query. Non-finite costs (a diverged step, which the engine skips)
    match nothing.
    """
    if arrived is not None:
        arrived.synchronize()
    start = time.perf_counter()
    out = np.full((len(chunk), costs.shape[1]), NO_LABEL, dtype=np.int64)
    for row, image in enumerate(chunk):
        ordinals = np.flatnonzero(valid[image].numpy())
        matrix = costs[image].numpy()[:, ordinals]
        if np.isfinite(matrix).all():
            queries, columns = linear_sum_assignment(matrix)
            out[row, queries] = ordinals[columns]
    return out, time.perf_counter() - start
