"""Everything that `dsvlp evaluate` measures of one run on one data set.

Losses beside their best constant predictors, how ITM tells true pairs from random ones, zero-shot
retrieval, and for models of the synthetic world the two probes. Objectives whose annotations the
data set lacks are left out and named. Where asked for, losses and matching once more with every gate
of the fusion closed: what the fusion contributes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from dsvlp import catalog, dist
from dsvlp.data.dataset import Dataset
from dsvlp.data.features.objects import read_images
from dsvlp.data.fit import check_features
from dsvlp.data.frames import Framing
from dsvlp.data.loader import Loader
from dsvlp.data.opened import open_data
from dsvlp.data.reading import read_picture, together
from dsvlp.data.synthetic import colour_words, relation_pairs
from dsvlp.data.text import Tokenizer
from dsvlp.engine.evaluate import Progress, evaluate, silent
from dsvlp.engine.gates import closed_gates, gates
from dsvlp.engine.inference import Inference, Trained
from dsvlp.engine.probes import ImagesOf, match_accuracy, relation_accuracy, single_tokens, word_accuracy
from dsvlp.engine.retrieval import Captions, Gallery
from dsvlp.errors import DataError, RunError
from dsvlp.objectives.mlm import MLM
from dsvlp.recipe import Recipe, Synthetic, reads_objects
from dsvlp.system import System
from dsvlp.tasks.scores import Share

log = logging.getLogger(__name__)

PROBE_PAIRS = 200
RERANK = 16


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        data: a `.beton`; None: the recipe's validation data, or the synthetic world's held-out scenes.
        features: the region features of `data`, for a system of objects.
        pairs: at most about this many pairs of it, drawn once; 0: all.
        retrieval: rank texts for images and images for texts.
        captions: for retrieval, each image's "first" alone, or "all" as well.
        rerank: a query's first candidates by ITC that ITM orders anew; 0: none; None: 16 where the system
            has both.
        all_pairs: score every pair by ITM too; a system without ITC does in any case.
        chunk_pairs: pairs fused at once for retrieval.
        zero_gates: measure losses and matching also with the fusion's gates at 0.
    """

    data: Path | None = None
    features: Path | None = None
    pairs: int = 0
    retrieval: bool = True
    captions: Captions = "first"
    rerank: int | None = None
    all_pairs: bool = False
    chunk_pairs: int = 256
    zero_gates: bool = False


class Scorer:
    """Measures one trained system on one data set. Every rank must call every method.

    Args:
        trained: the run's system; moved to this rank's device.
        tokenizer: the run's.
        settings: what to measure.
        progress: called at each micro-batch.

    Raises:
        DataError: the data set is damaged, or its label tables are not the run's.
        RunError: something is asked for that the system has no part for.
    """

    def __init__(
        self, trained: Trained, tokenizer: Tokenizer, settings: Settings, progress: Progress = silent
    ) -> None:
        self._trained, self._tokenizer, self._settings = trained, tokenizer, settings
        self._progress = progress
        _check(trained, settings)
        self._dataset = _open(trained.recipe, settings)
        self._recipe, self.left_out = _measurable(trained, self._dataset)
        modules = {name: trained.system.objectives[name] for name in self._recipe.objectives.enabled()}
        self._system = System(trained.system.model, cast(Any, modules))
        self._engine = Inference(self._system, self._recipe.engine.precision, dist.device())

    def run(self) -> dict[str, Any]:
        """Returns all scores as JSON, equal on all ranks."""
        objectives, fusion = self._system.objectives, gates(self._system)
        itm = self._recipe.objectives.itm
        out: dict[str, Any] = {
            "data": str(self._dataset.path),
            "images": self._dataset.images,
            "checkpoint": self._trained.path.name,
            "step": self._trained.step,
            "pairs_asked_for": self._settings.pairs,
            "left_out": self.left_out,
            "itm_negatives": itm and itm.negatives,
            **self._losses_and_matching(),
        }
        if fusion:
            out["gates"] = fusion
        if self._settings.retrieval and ("itc" in objectives or "itm" in objectives):
            out["retrieval"] = self._retrieval()
        world = self._recipe.data.synthetic
        if not self._recipe.data.train and world is not None:
            out["probes"] = self._probes(world)
        if self._settings.zero_gates:
            with closed_gates(self._system):
                out["zero_gates"] = self._losses_and_matching()
        return out

    def _losses_and_matching(self) -> dict[str, Any]:
        out: dict[str, Any] = {"losses": self._losses()}
        if "itm" in self._system.objectives:
            with self._batches() as batches:
                out["itm_accuracy_random_texts"] = match_accuracy(
                    self._engine, batches, self._progress
                ).to_json()
        return out

    def _batches(self, questions: bool = False) -> Loader:
        """Returns a pass over the data's captions, where asked also over the questions that are learnt."""
        recipe = self._recipe if questions else _without_questions(self._recipe)
        return Loader(
            recipe,
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
        with self._batches(questions=True) as batches:
            return evaluate(self._engine, self._system, batches, weights, self._progress)

    def _retrieval(self) -> dict[str, Any]:
        settings, objectives = self._settings, self._system.objectives
        with self._batches() as batches:
            gallery = Gallery(self._engine, batches, settings.chunk_pairs, settings.captions, self._progress)
        names = gallery.names
        modes: tuple[Captions, ...] = ("first",) if settings.captions == "first" else ("first", "all")
        out: dict[str, Any] = {"images": len(names.image_rows), "texts": len(names.samples)}
        itc = gallery.similarities() if "itc" in objectives else None
        every = gallery.matches() if settings.all_pairs or itc is None else None
        if itc is not None:
            out |= {f"itc_{mode}_captions": _json(names.recalls(itc, mode)) for mode in modes}
            if "itm" in objectives and settings.rerank != 0:
                k = settings.rerank or RERANK
                wanted = np.logical_or.reduce([names.candidates(itc, mode, k) for mode in modes])
                itm = gallery.matches(wanted) if every is None else every
                out["reranked"] = k
                for mode in modes:
                    out[f"itc+itm_{mode}_captions"] = _json(names.recalls_reranked(itc, itm, mode, k))
        if every is not None:
            out |= {f"itm_{mode}_captions": _json(names.recalls(every, mode)) for mode in modes}
        return out

    def _probes(self, world: Synthetic) -> dict[str, Any]:
        text = self._recipe.model.text
        out: dict[str, Any] = {}
        if world.max_shapes > 1 and "itm" in self._system.objectives:
            pairs = relation_pairs(PROBE_PAIRS, world.seed, world.image_size, world.max_shapes)
            found = relation_accuracy(
                self._engine, pairs, self._tokenizer, self._images(), text.max_length, progress=self._progress
            )
            out["relation_word"] = found.to_json()
        if "mlm" in self._system.objectives:
            out |= self._colours()
        return out

    def _images(self) -> ImagesOf:
        """Returns what makes the images of the relation probe's pairs: their pictures, or their objects."""
        if reads_objects(self._recipe):
            features = _open(self._recipe, Settings()).features
            assert features is not None, "`open_data` has seen to it"
            return lambda pairs: read_images(features, np.array([pair.image for pair in pairs]))
        framing = Framing.of(self._recipe)
        return lambda pairs: together(
            [read_picture(pair.jpeg, framing, "a probe's picture") for pair in pairs], framing
        )

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


def _without_questions(recipe: Recipe) -> Recipe:
    """Returns a recipe whose loader deals captions alone: a question is no text to find an image by."""
    objectives = recipe.objectives.model_copy(update={"qa": None})
    return recipe.model_copy(update={"objectives": objectives})


def _json(shares: dict[str, Share]) -> dict[str, Any]:
    return {name: share.to_json() for name, share in shares.items()}


def _check(trained: Trained, settings: Settings) -> None:
    """Raises `RunError` where the settings ask for what the run's system does not have."""
    enabled = trained.recipe.objectives.enabled()
    asked = {
        "--rerank": ({"itc", "itm"}, bool(settings.rerank)),
        "--all-pairs": ({"itm"}, settings.all_pairs),
    }
    for option, (needs, wanted) in asked.items():
        if wanted and not needs <= enabled.keys():
            missing = " and ".join(f"objectives.{name}" for name in sorted(needs - enabled.keys()))
            raise RunError(
                f"{option}: the run was trained without {missing}", f"a run with it, or no {option}"
            )
    if settings.zero_gates and not gates(trained.system):
        raise RunError(
            f"--zero-gates: {trained.recipe.model.system} has no gates in its fusion", "a run of fiber"
        )


def _open(recipe: Recipe, settings: Settings) -> Dataset:
    if settings.data is not None:
        dataset = Dataset.open(settings.data, verify="quick", features=settings.features)
        check_features(recipe, dataset)
        return dataset
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
