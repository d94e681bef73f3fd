"""What comes before a system over region features: its objects found in pictures, their features pooled.

As `dsvlp data features` does both, of random pictures in memory. The detector is one that exists, by name
or folder; the CNN's weights are drawn: they decide no time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from dsvlp.errors import RecipeError
from dsvlp.models.cnn import CNN
from dsvlp.recipe import CNN as Table
from dsvlp.recipe import Recipe, SemVLPModel
from dsvlp.regions.backbone import Backbone, Sizes
from dsvlp.regions.detector import Detector
from dsvlp.regions.extractor import looked_at

HEIGHT, WIDTH = 480, 640  # pixels of a picture, most of COCO's


@dataclass(frozen=True)
class Extraction:
    """How objects are made.

    Attributes:
        detector: one of transformers' DETR family: hub name or folder.
        backbone: a CNN of timm, of stride 32.
    """

    detector: str
    backbone: str


def maker(
    extraction: Extraction, recipe: Recipe, device: torch.device
) -> Callable[[int], Callable[[], object]]:
    """Returns a function: pictures of a batch -> a call that makes their objects and features.

    Raises:
        RecipeError: the recipe's system reads pixels.
        DataError: there is no such detector or CNN, or the detector finds fewer objects than are read.
    """
    table = recipe.model
    if not isinstance(table, SemVLPModel):
        raise RecipeError(
            f"--detector {extraction.detector} with a system that reads pixels",
            "one over region features",
            "Leave --detector out, or measure a SemVLP recipe",
        )
    detector = Detector.load(extraction.detector, table.objects, device)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "drawn.safetensors"
        save_file(CNN(Table(name=extraction.backbone)).body.state_dict(), weights)
        backbone = Backbone(extraction.backbone, str(weights), Sizes(), device)

    def of(pictures: int) -> Callable[[], object]:
        shown = list(torch.randint(256, (pictures, 3, HEIGHT, WIDTH), dtype=torch.uint8, device=device))
        return lambda: looked_at(detector, backbone, shown, [])

    return of
