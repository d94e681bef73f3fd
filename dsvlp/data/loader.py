"""The loader: named micro-batches from any position on, the same for any world size.

A thread plans, reads and assembles; a pool of threads decodes, or a GPU does; the consumer takes finished
batches from a bounded queue. All choices are pure functions of (seed, position), so the loader's state is a
number of steps, and it is the same on every rank.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from dsvlp import catalog, dist
from dsvlp.data.annotations import Annotations
from dsvlp.data.answers import Answers
from dsvlp.data.bad import BadImages
from dsvlp.data.batches import BatchBuilder, pinned
from dsvlp.data.dataset import Dataset
from dsvlp.data.dealer import Dealer
from dsvlp.data.decode import Decoder, DeviceDecoder
from dsvlp.data.decoders.open import open_decoder
from dsvlp.data.device_studio import make_studio
from dsvlp.data.features.objects import ObjectBatchBuilder, ObjectReader
from dsvlp.data.fit import answer_table
from dsvlp.data.frames import Framing
from dsvlp.data.lane import Lane
from dsvlp.data.mode import training_mode, validation_mode
from dsvlp.data.pairs import PairBuilder, Texts
from dsvlp.data.pictures import PictureMaker
from dsvlp.data.plan import Plan, Stream, plan
from dsvlp.data.prefetch import Prefetcher
from dsvlp.data.pseudo import PseudoLabels
from dsvlp.data.sources import Sources
from dsvlp.data.text import Tokenizer
from dsvlp.errors import DataError, RunError
from dsvlp.recipe import (
    Recipe,
    accumulation,
    micro_pairs,
    reads_objects,
    swaps_texts,
)
from dsvlp.seed import key_of
from dsvlp.types import Batch

log = logging.getLogger(__name__)

_Made = tuple[Batch, torch.cuda.Event | None]  # with what tells when the GPU has made its images

# Validation asks the same questions in every run, whatever its seed.
_EVALUATION_SEED = 0


class Loader:
    """Yields this rank's micro-batches. Endless in training, one padded pass in evaluation.

    They lie on the CPU, pinned where there is a GPU; images and maps that a GPU has decoded stay there, ready
    for the stream of the thread that takes them.

    Rank r's a-th micro-batch of a step holds the global batch's places from (a x world + r) x micro on.
    In evaluation every rank gets equally many micro-batches; what fills the last ones has weight 0.
    `rows` and `samples` of the batches count through the data sets in the order given.

    Args:
        recipe: the resolved recipe.
        datasets: in training the sources of `data.train` in their order, in evaluation one data set.
        tokenizer: the tokenizer.
        rank, world: this process among all.
        split: "train" augments and goes on for ever; "evaluate" does neither.
        pairs: evaluation only: at most about this many pairs, drawn once; 0: all.
        decoder: decodes in place of the recipe's backend.

    Attributes:
        bad: counts of bad images.
        partnerless: pairs of the global batches made so far that ITM would have mismatched, but for which
            no other image was found.

    Raises:
        MissingDependency, RunError: the recipe's decoder cannot work here.
    """

    def __init__(
        self,
        recipe: Recipe,
        datasets: Sequence[Dataset],
        tokenizer: Tokenizer,
        *,
        rank: int,
        world: int,
        split: Literal["train", "evaluate"],
        pairs: int = 0,
        decoder: Decoder | DeviceDecoder | None = None,
    ) -> None:
        data, captions = recipe.data, recipe.data.captions_per_image
        self._recipe, self._datasets, self._tokenizer = recipe, datasets, tokenizer
        self._rank, self._world, self._training = rank, world, split == "train"
        self._seed = recipe.seed if self._training else _EVALUATION_SEED
        self._accumulation = accumulation(recipe, world)
        self._micro = micro_pairs(recipe, world) // captions
        self._global = recipe.batch.global_pairs // captions
        self._weights = [source.weight for source in data.train if self._training] or [1.0]
        assert len(self._weights) == len(datasets), "one data set a source, one alone in evaluation"
        self._tasks = ("caption",) if recipe.objectives.qa is None else ("caption", "question")
        self._stream = Stream(datasets, self._weights, captions, data.open_shards, self._seed, self._tasks)
        self._groups = sum(self._stream.groups_an_epoch)
        if pairs and not self._training:
            self._groups = min(self._groups, -(-pairs // captions))
        self._framing = None if reads_objects(recipe) else Framing.of(recipe)
        self._dealer = Dealer(
            self._stream,
            self._framing,
            self._global,
            data.bucket_window,
            self._seed,
            None if self._training else self._groups,
        )
        self.bad = BadImages(data.max_bad_share, sum(dataset.images for dataset in datasets) // world)
        self.partnerless = 0
        self._decoder: Decoder | DeviceDecoder | None = None  # a model of objects reads no picture
        if not reads_objects(recipe):
            self._decoder = decoder or open_decoder(data.decoder, dist.device())
        self._studio: PictureMaker | ObjectReader | None = None
        self._prefetcher: Prefetcher[_Made] | None = None
        self._first_step = 0
        self._taken = 0
        self._waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Returns the next micro-batch.

        Raises:
            DataError: the data are damaged beyond what the recipe allows.
            RunError: nothing came for `data.timeout_seconds`.
        """
        if self._prefetcher is None:
            self._prefetcher = self._start()
        try:
            batch, mark = next(self._prefetcher)
        except (StopIteration, DataError, RunError):
            self.close()
            raise
        assert self._studio is not None, "it lives as long as the prefetcher"
        self._studio.lane.hand_over(mark, batch.images, batch.segmentation)
        mode = training_mode(self._recipe, self._step) if self._training else validation_mode(self._recipe)
        self._taken += 1
        return batch if mode is None else replace(batch, mode=mode)

    def __len__(self) -> int:
        """Returns the micro-batches of an evaluation pass."""
        if self._training:
            raise TypeError("a training loader is endless")
        full, rest = divmod(self._groups, self._global)
        return full * self._accumulation + -(-rest // (self._micro * self._world))

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _step(self) -> int:
        """The step that the next micro-batch belongs to, counted from 0."""
        return self._first_step + self._taken // self._accumulation

    @property
    def wait_seconds(self) -> float:
        """Returns how long the consumer has waited for batches, seconds."""
        return self._waited + (self._prefetcher.wait_seconds if self._prefetcher else 0.0)

    def close(self) -> None:
        """Ends all threads; batches made ahead are dropped. Harmless when called twice."""
        ended = True
        if self._prefetcher is not None:
            self._waited += self._prefetcher.wait_seconds
            ended = self._prefetcher.close()
            self._prefetcher = None
        if self._studio is not None:
            self._studio.close(wait=ended)  # what hangs, hangs in a read: waiting would hang too
            self._studio = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the position and what it is a position in, as JSON; equal on all ranks.

        Raises:
            RunError: called within an optimizer step.
        """
        if self._taken % self._accumulation:
            raise RunError(
                f"the loader's state was asked for after {self._taken % self._accumulation} of "
                f"{self._accumulation} micro-batches of a step",
                "a call between steps",
            )
        return {"steps": self._step, "decoder": self._decoder_name, **self._identity()}

    @property
    def _decoder_name(self) -> str | None:
        return None if self._decoder is None else self._decoder.name

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the loader that gave `state` stood.

        Raises:
            DataError: names what differs: seed, batch, order, sources, weights or tokenizer.
        """
        mine = self._identity()
        if state.get("decoder") != self._decoder_name and self._rank == 0:
            log.warning(
                "images were decoded by %s, and are by %s from here on: the same samples with slightly other "
                "pixels, so the run goes on, but not bit for bit",
                state.get("decoder"),
                self._decoder_name,
            )
        differing = [key for key in mine if state.get(key) != mine[key]]
        if differing:
            lines = "; ".join(f"{key}: {state.get(key)!r} there, {mine[key]!r} here" for key in differing)
            raise DataError(
                f"the checkpoint's data differ from this run's: {lines}",
                "the same data, batch and tokenizer: otherwise samples would be seen twice or never",
                "Start a new run from the checkpoint's weights instead",
            )
        self.close()
        self._first_step, self._taken = int(state["steps"]), 0

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "global_pairs": self._recipe.batch.global_pairs,
            "captions_per_image": self._recipe.data.captions_per_image,
            "open_shards": self._recipe.data.open_shards,
            "sources": [dataset.manifest.to_json()["digest"] for dataset in self._datasets],
            "weights": self._weights,
            "tokenizer": self._tokenizer.fingerprint,
            "tasks": list(self._tasks),
            "bucket_window": self._dealer.window,
            "features": [dataset.features.manifest.digest for dataset in self._datasets if dataset.features],
        }

    def _start(self) -> Prefetcher[_Made]:
        recipe = self._recipe
        needs = catalog.data_needs(recipe)
        spl = recipe.objectives.spl
        pseudo = None if spl is None else PseudoLabels(recipe.model.visual_queries, spl.confidence)
        sources = Sources(self._datasets, needs, recipe.data.open_shards, pseudo)
        texts = Texts(self._tokenizer, recipe.model.text.max_length, swap=swaps_texts(recipe))
        pairs = PairBuilder(sources, self._stream, texts, self._answers())
        builder: BatchBuilder | ObjectBatchBuilder
        if self._decoder is None:
            self._studio, builder = self._of_objects(pairs)
        else:
            self._studio, builder = self._of_pictures(self._decoder, needs, sources, pairs)
        name = "training data" if self._training else "evaluation data"
        return Prefetcher(
            self._batches(builder, self._studio.lane, self._step),
            recipe.data.prefetch,
            recipe.data.timeout_seconds,
            name,
        )

    def _of_pictures(
        self, decoder: Decoder | DeviceDecoder, needs: frozenset[str], sources: Sources, pairs: PairBuilder
    ) -> tuple[PictureMaker, BatchBuilder]:
        recipe = self._recipe
        annotations = Annotations(
            self._datasets[0].segmentation if "segmentation" in needs else None,
            self._datasets[0].boxes if "boxes" in needs else None,
        )
        studio = make_studio(decoder, recipe.data.workers, annotations)
        assert self._framing is not None, "a model of pixels"
        return studio, BatchBuilder(
            sources,
            self._stream,
            studio,
            self._framing,
            pairs,
            recipe.data.augment if self._training else None,
            recipe.objectives.spl.keep_area if recipe.objectives.spl is not None else 0.0,
            self.bad,
        )

    def _of_objects(self, pairs: PairBuilder) -> tuple[ObjectReader, ObjectBatchBuilder]:
        features = [dataset.features for dataset in self._datasets if dataset.features is not None]
        assert len(features) == len(self._datasets), "`check_annotations` has seen to it"
        reader = ObjectReader(features, self._recipe.data.workers, pinned=torch.cuda.is_available())
        return reader, ObjectBatchBuilder(reader, pairs)

    def _answers(self) -> Answers | None:
        """Returns what draws the pairs' labels: the sources that have questions share one table."""
        table = answer_table(self._datasets)
        return None if self._recipe.objectives.qa is None or table is None else Answers(table)

    def _batches(self, builder: BatchBuilder | ObjectBatchBuilder, lane: Lane, step: int) -> Iterator[_Made]:
        """Yields finished micro-batches; the threads are already busy with the one after."""
        before: Any = None
        for micro in self._plans(step):
            started: Any = builder.start(micro)
            if before is not None:
                yield _finished(builder.finish(before), lane)
            before = started
        if before is not None:
            yield _finished(builder.finish(before), lane)

    def _plans(self, step: int) -> Iterator[Plan]:
        swap = swaps_texts(self._recipe)
        while self._training or step * self._global < self._groups:
            dealt = self._dealer.at(step)
            batch = plan(dealt, key_of(self._seed, step, "step"), swap)
            self._count_partnerless(batch.partnerless, step)
            for number in range(-(-dealt.real // (self._micro * self._world))):
                begin = (number * self._world + self._rank) * self._micro
                yield batch.take(begin, begin + self._micro)
            step += 1

    def _count_partnerless(self, count: int, step: int) -> None:
        if count and not self.partnerless and self._rank == 0:
            log.warning(
                "step %d: %d of %d pairs stay matched, for no other image was found in the batch; "
                "told once, later ones are counted only",
                step,
                count,
                self._recipe.batch.global_pairs,
            )
        self.partnerless += count


def _finished(batch: Batch, lane: Lane) -> _Made:
    """Returns a batch as it waits for its consumer."""
    return pinned(batch) if torch.cuda.is_available() else batch, lane.mark()
