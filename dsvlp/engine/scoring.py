"""Everything that `dsvlp evaluate` measures of one run on one data set.

Losses beside their best constant predictors, zero-shot retrieval, and for models of the synthetic
world the two probes. Objectives whose annotations the data set lacks are left out and named.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dsvlp import catalog, dist
from dsvlp.data.dataset import Dataset
from dsvlp.data.loader import Loader, open_data
from dsvlp.data.synthetic import colour_words, relation_pairs
from dsvlp.data.text import Tokenizer
from dsvlp.engine.evaluate import Progress, evaluate, silent
from dsvlp.engine.inference import Inference, Trained
from dsvlp.engine.probes import relation_accuracy, single_tokens, word_accuracy
from dsvlp.engine.retrieval import Captions, score_all_pairs
from dsvlp.errors import DataError
from dsvlp.objectives.mlm import MLM
from dsvlp.recipe import Recipe
from dsvlp.system import System

log = logging.getLogger(__name__)

PROBE_PAIRS = 200


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        data: a `.beton`; None: the recipe's validation data, or the synthetic world's held-out scenes.
        pairs: at most about this many pairs of it, drawn once; 0: all.
        retrieval: score all image-text pairs.
        captions: for retrieval, each image's "first" alone, or "all" as well.
        chunk_pairs: pairs fused at once for retrieval.
    """

    data: Path | None = None
    pairs: int = 0
    retrieval: bool = True
    captions: Captions = "first"
    chunk_pairs: int = 256


class Scorer:
    """Measures one trained system on one data set. Every rank must call every method.

    Args:
        trained: the run's system; moved to this rank's device.
        tokenizer: the run's.
        settings: what to measure.
        progress: called at each micro-batch.

    Raises:
        DataError: the data set is damaged, or its label tables are not the run's.
    """

    def __init__(
        self, trained: Trained, tokenizer: Tokenizer, settings: Settings, progress: Progress = silent
    ) -> None:
        self._trained, self._tokenizer, self._settings = trained, tokenizer, settings
        self._progress = progress
        self._dataset = _open(trained.recipe, settings.data)
        self._recipe, self.left_out = _measurable(trained, self._dataset)
        modules = {name: trained.system.objectives[name] for name in self._recipe.objectives.enabled()}
        self._system = System(trained.system.model, cast(Any, modules))
        self._engine = Inference(self._system, self._recipe.engine.precision, dist.device())

    def run(self) -> dict[str, Any]:
        """Returns all scores as JSON, equal on all ranks."""
        out: dict[str, Any] = {
            "data": str(self._dataset.path),
            "images": self._dataset.images,
            "checkpoint": self._trained.path.name,
            "step": self._trained.step,
            "pairs_asked_for": self._settings.pairs,
            "left_out": self.left_out,
            "losses": self._losses(),
        }
        if self._settings.retrieval and "itm" in self._system.objectives:
            out["retrieval"] = self._retrieval()
        if not self._recipe.data.train:
            out["probes"] = self._probes()
        return out

    def _batches(self) -> Loader:
        return Loader(
            self._recipe,
            [self._dataset],
            self._tokenizer,
            rank=dist.rank(),
            world=dist.world_size(),
            split="evaluate",
            pairs=self._settings.pairs,
        )

    def _losses(self) -> dict[str, float]:
        tables: dict[str, Any] = self._recipe.objectives.enabled()
        weights = {name: table.weight for name, table in tables.items()}
        with self._batches() as batches:
            return evaluate(self._engine, self._system, batches, weights, self._progress)

    def _retrieval(self) -> dict[str, Any]:
        with self._batches() as batches:
            settings = self._settings
            matrix = score_all_pairs(
                self._engine, batches, settings.chunk_pairs, settings.captions, self._progress
            )
        out: dict[str, Any] = {"images": len(matrix.image_rows), "texts": len(matrix.samples)}
        modes: tuple[Captions, ...] = ("first",) if settings.captions == "first" else ("first", "all")
        for captions in modes:
            shares = matrix.recalls(captions)
            out[f"{captions}_captions"] = {name: share.to_json() for name, share in shares.items()}
        return out

    def _probes(self) -> dict[str, Any]:
        world, text = self._recipe.data.synthetic, self._recipe.model.text
        out: dict[str, Any] = {}
        if world.max_shapes > 1 and "itm" in self._system.objectives:
            pairs = relation_pairs(PROBE_PAIRS, world.seed, world.image_size, world.max_shapes)
            size = self._recipe.model.image_size
            found = relation_accuracy(
                self._engine, pairs, self._tokenizer, size, text.max_length, progress=self._progress
            )
            out["relation_word"] = found.to_json()
        if "mlm" in self._system.objectives:
            out |= self._colours()
        return out

    def _colours(self) -> dict[str, Any]:
        mlm = cast(MLM, self._system.objectives["mlm"])
        alone = System(self._system.model, cast(Any, {"mlm": mlm}))
        engine = Inference(alone, self._recipe.engine.precision, dist.device())
        ids = single_tokens(colour_words(), self._tokenizer)
        with self._batches() as batches:
            found = word_accuracy(engine, mlm, batches, ids, self._progress)
        return {
            "colour_words_with_picture": found.with_picture.to_json(),
            "colour_words_without_picture": found.without_picture.to_json(),
        }


def _open(recipe: Recipe, data: Path | None) -> Dataset:
    if data is not None:
        return Dataset.open(data, verify="quick")
    with open_data(recipe) as opened:
        if opened.held_out is None:
            raise DataError("the run's recipe has no validation data", "held-out data", "Give --data X.beton")
        return opened.held_out


def _measurable(trained: Trained, dataset: Dataset) -> tuple[Recipe, dict[str, str]]:
    """Returns the recipe without the objectives that the data set cannot measure, and why for each."""
    reasons: dict[str, str] = {}
    for name in trained.recipe.objectives.enabled():
        for annotation in sorted(catalog.OBJECTIVES[name].data):
            there, learnt = getattr(dataset, annotation), getattr(trained.facts, annotation)
            if there != learnt:
                reasons[name] = f"{dataset.path.name} has " + (
                    f"no {annotation}"
                    if there is None
                    else f"another label table of {annotation}, {there.name}"
                )
    kept = trained.recipe.objectives.model_copy(update=dict.fromkeys(reasons))
    if not kept.enabled():
        raise DataError(f"nothing can be measured: {reasons}", "a data set with the run's annotations")
    return trained.recipe.model_copy(update={"objectives": kept}), reasons
