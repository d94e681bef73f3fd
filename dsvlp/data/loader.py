"""The loader: named micro-batches from any position on, the same for any world size.

A thread plans, reads and assembles; a pool of threads decodes, or a GPU does; the consumer takes finished
batches from a bounded queue. All choices are pure functions of (seed, position), so the loader's state is a
number of steps, and it is the same on every rank.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dsvlp import catalog, dist
from dsvlp.data.annotations import Annotations
from dsvlp.data.bad import BadImages
from dsvlp.data.batches import BatchBuilder, Texts, pinned
from dsvlp.data.dataset import Dataset
from dsvlp.data.decode import Decoder, DeviceDecoder
from dsvlp.data.decoders.open import open_decoder
from dsvlp.data.device_studio import make_studio
from dsvlp.data.fetch import Fetcher
from dsvlp.data.fit import check_annotations, choose_tokenizer, facts
from dsvlp.data.pictures import PictureMaker
from dsvlp.data.plan import Plan, Stream, plan
from dsvlp.data.prefetch import Prefetcher
from dsvlp.data.sources import Sources
from dsvlp.data.staged import nearest
from dsvlp.data.synthetic import ensure_world
from dsvlp.data.text import Tokenizer
from dsvlp.errors import DataError, RunError
from dsvlp.recipe import Recipe, accumulation, fetches_negatives, micro_pairs, swaps_texts
from dsvlp.seed import key_of
from dsvlp.types import Batch, DataFacts

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
        self._stream = Stream(datasets, self._weights, captions, data.open_shards, self._seed)
        self._groups = sum(self._stream.groups_an_epoch)
        if pairs and not self._training:
            self._groups = min(self._groups, -(-pairs // captions))
        self.bad = BadImages(data.max_bad_share, sum(dataset.images for dataset in datasets) // world)
        self.partnerless = 0
        self._decoder = decoder or open_decoder(data.decoder, dist.device())
        self._studio: PictureMaker | None = None
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
        self._taken += 1
        return batch

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
        steps = self._first_step + self._taken // self._accumulation
        return {"steps": steps, "decoder": self._decoder.name, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the loader that gave `state` stood.

        Raises:
            DataError: names what differs: seed, batch, sources, weights or tokenizer.
        """
        mine = self._identity()
        if state.get("decoder") != self._decoder.name and self._rank == 0:
            log.warning(
                "images were decoded by %s, and are by %s from here on: the same samples with slightly other "
                "pixels, so the run goes on, but not bit for bit",
                state.get("decoder"),
                self._decoder.name,
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
        }

    def _start(self) -> Prefetcher[_Made]:
        recipe = self._recipe
        needs = catalog.data_needs(recipe)
        annotations = Annotations(
            self._datasets[0].segmentation if "segmentation" in needs else None,
            self._datasets[0].boxes if "boxes" in needs else None,
        )
        self._studio = make_studio(self._decoder, recipe.model.image_size, recipe.data.workers, annotations)
        builder = BatchBuilder(
            Sources(self._datasets, needs, recipe.data.open_shards),
            self._stream,
            self._studio,
            Texts(self._tokenizer, recipe.model.text.max_length, swap=swaps_texts(recipe)),
            recipe.data.augment if self._training else None,
            recipe.objectives.spl.keep_area if recipe.objectives.spl is not None else 0.0,
            self.bad,
        )
        step = self._first_step + self._taken // self._accumulation
        name = "training data" if self._training else "evaluation data"
        return Prefetcher(
            self._batches(builder, self._studio, step),
            recipe.data.prefetch,
            recipe.data.timeout_seconds,
            name,
        )

    def _batches(self, builder: BatchBuilder, studio: PictureMaker, step: int) -> Iterator[_Made]:
        """Yields finished micro-batches; the threads are already busy with the one after."""
        before = None
        for micro in self._plans(step):
            started = builder.start(micro)
            if before is not None:
                yield _finished(builder.finish(before), studio)
            before = started
        if before is not None:
            yield _finished(builder.finish(before), studio)

    def _plans(self, step: int) -> Iterator[Plan]:
        swap = swaps_texts(self._recipe)
        while self._training or step * self._global < self._groups:
            positions = np.arange(step * self._global, (step + 1) * self._global)
            real = self._global
            if not self._training:
                real = min(real, self._groups - int(positions[0]))
                positions %= self._groups
            batch = plan(self._stream, positions, real, key_of(self._seed, step, "step"), swap)
            self._count_partnerless(batch.partnerless, step)
            for number in range(-(-real // (self._micro * self._world))):
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


def _finished(batch: Batch, studio: PictureMaker) -> _Made:
    """Returns a batch as it waits for its consumer."""
    return pinned(batch) if torch.cuda.is_available() else batch, studio.lane.mark()


@dataclass(frozen=True)
class Data:
    """Everything that a recipe reads, opened and checked. Close it, or use it in `with`.

    Attributes:
        train: this rank's training loader.
        fetcher: brings ITM's negatives again where they come from ITC's queue, else None.
        datasets: the training sources.
        held_out: the validation data set, or None.
        tokenizer: the tokenizer.
        facts: what the system must know.
    """

    recipe: Recipe
    train: Loader
    datasets: tuple[Dataset, ...]
    held_out: Dataset | None
    tokenizer: Tokenizer
    facts: DataFacts
    fetcher: Fetcher | None = None

    @property
    def bad_images(self) -> int:
        """Returns how many images of the training data could not be used so far."""
        return self.train.bad.total + (self.fetcher.bad.total if self.fetcher is not None else 0)

    @property
    def has_validation(self) -> bool:
        """Returns whether there is data to validate on."""
        return self.held_out is not None

    def validation(self) -> Loader:
        """Returns a new pass over the validation data, `watch.validation_pairs` of it; close it.

        Raises:
            DataError: the recipe has no validation data.
        """
        if self.held_out is None:
            raise DataError("the recipe has no validation data", "data.validation = a .beton data set")
        return Loader(
            self.recipe,
            [self.held_out],
            self.tokenizer,
            rank=dist.rank(),
            world=dist.world_size(),
            split="evaluate",
            pairs=self.recipe.watch.validation_pairs,
        )

    def __enter__(self) -> Data:
        return self

    def __exit__(self, *_: object) -> None:
        self.train.close()
        if self.fetcher is not None:
            self.fetcher.close()


def open_data(recipe: Recipe, cache: Path | None = None) -> Data:
    """Returns the recipe's data sets, tokenizer and training loader, checked against each other.

    Where `data.train` is empty, the synthetic world stands in: made in the cache the first time.

    Args:
        recipe: the resolved recipe.
        cache: where made data is kept; None: `dsvlp` in the user's cache folder.

    Raises:
        DataError: a file is absent or damaged, or does not fit the recipe.
    """
    paths, validation = [Path(source.path) for source in recipe.data.train], recipe.data.validation
    held_out = Path(validation) if validation is not None else None
    if not paths:
        made, made_held_out = ensure_world(recipe.data.synthetic, cache or cache_folder())
        paths, held_out = [made], held_out or made_held_out
    datasets = tuple(Dataset.open(nearest(path), verify="quick") for path in paths)
    checked = Dataset.open(nearest(held_out), verify="quick") if held_out is not None else None
    check_annotations(recipe, [*datasets, checked] if checked is not None else datasets)
    tokenizer = choose_tokenizer(recipe, datasets)
    world, fetcher = dist.world_size(), None
    train = Loader(recipe, datasets, tokenizer, rank=dist.rank(), world=world, split="train")
    if fetches_negatives(recipe):
        fetcher = Fetcher(recipe, datasets, tokenizer, accumulation(recipe, world), world)
    return Data(recipe, train, datasets, checked, tokenizer, facts(datasets, tokenizer), fetcher)


def cache_folder() -> Path:
    """Returns the folder for data that can be made again, `~/.cache/dsvlp` unless XDG says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dsvlp"
