"""Pseudo-labels: what a detector saw, in place of the boxes and classes that people drew (SVL, SPL)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dsvlp.data.features.stored import Features
from dsvlp.data.rows import StoredRow


@dataclass(frozen=True)
class PseudoLabels:
    """Which objects of an image's region features are its labels.

    Attributes:
        most: the most confident so many: the model's queries.
        confidence: least of each.
    """

    most: int
    confidence: float

    def given(self, features: Features, rows: np.ndarray, stored: Sequence[StoredRow]) -> list[StoredRow]:
        """Returns stored rows with the boxes and classes of their features, of which no byte is read.

        Args:
            features: the data set's.
            rows: int64 [I], of the data set.
            stored: these rows as they lie in it.
        """
        ids = np.array(features.table.ids if features.table is not None else (), "<i4")
        out = []
        for about, row in zip(features.about(rows), stored, strict=True):
            good = (
                (about["is_object"] != 0) & (about["label"] >= 0) & (about["confidence"] >= self.confidence)
            )
            chosen = about[good]
            chosen = chosen[np.argsort(-chosen["confidence"], kind="stable")[: self.most]]
            boxes = chosen["box"] * np.array([row.width, row.height] * 2, "<f4")
            out.append(replace(row, boxes_xyxy=boxes, box_labels=ids[chosen["label"]]))
        return out
