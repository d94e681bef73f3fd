"""Exports of small untrained systems, for what starts from them."""

from __future__ import annotations

from pathlib import Path

import torch

from dsvlp.data.text import Tokenizer, train_wordpiece
from dsvlp.engine.inference import Trained
from dsvlp.predict import export
from dsvlp.recipe import Recipe
from dsvlp.system import System, build
from dsvlp.types import DataFacts
from tests.batches import make_facts

TEXTS = ["a red circle above a blue square", "two green triangles", "a yellow star left of a circle"]


def tokenizer() -> Tokenizer:
    """Returns one of at most 40 ids, with the special ids of the made-up batches."""
    return train_wordpiece(TEXTS, 40)


def scattered(recipe: Recipe, facts: DataFacts, seed: int = 5) -> System:
    """Returns a new system whose weights, gates and norms among them, are far from where they start."""
    system = build(recipe, facts)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.05)
    return system


def write_export(recipe: Recipe, folder: Path, facts: DataFacts | None = None) -> Path:
    """Writes an export of step 7 with `scattered` weights."""
    known = facts or make_facts()
    export.write(Trained(recipe, known, scattered(recipe, known), 7, folder), tokenizer(), folder)
    return folder
