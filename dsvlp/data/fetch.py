"""Images and texts of named samples, fetched in the background: ITM's negatives from ITC's queue.

A queue remembers past pairs by their numbers alone. Those that are likely negatives of the next step
are read, decoded and tokenised here while this step still runs, or those of this step while it waits
(`objectives.itm.negatives_delay`). They get the training augmentation,
or ITM could tell negatives by their crops; it is drawn from (seed, step, sample), so that a resumed
run fetches the same pixels.

Legend: F places asked for, L text tokens, S the side.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsvlp import dist
from dsvlp.data.annotations import Annotations
from dsvlp.data.bad import BadImages
from dsvlp.data.batches import pinned, training_crops
from dsvlp.data.dataset import Dataset
from dsvlp.data.decode import Decoder, DeviceDecoder
from dsvlp.data.decoders.open import open_decoder
from dsvlp.data.device_studio import make_studio
from dsvlp.data.frames import Framing
from dsvlp.data.pictures import Job, PictureMaker
from dsvlp.data.prefetch import Prefetcher
from dsvlp.data.sources import Sources
from dsvlp.data.text import Tokenizer
from dsvlp.errors import DataError, RunError
from dsvlp.recipe import Recipe
from dsvlp.seed import fold, key_of
from dsvlp.types import Fetched

_Made = tuple[Fetched, torch.cuda.Event | None]  # with what tells when the GPU has made its images

NONE = -1  # in place of a sample: the place stays empty

Names = Callable[[], Tensor]
"""Returns int64 [F, 2] on the CPU: the sample of each place's image, and of its text; may wait."""


@dataclass(frozen=True)
class _Request:
    step: int
    first: int
    names: Names


class Fetcher:
    """Fetches what is asked for, in order, in a thread of its own with its own pool of decoders.

    The threads begin with the first request. A bad image's place stays empty, and so does that of a
    sample that is not named: another image in it would not be the one that it was drawn for.

    Args:
        recipe: the resolved recipe.
        datasets: the training sources, in the loader's order.
        tokenizer: the tokenizer.
        ahead: finished requests that may wait.
        world: number of processes, for this one's share of the bad images that may be met.
        decoder: decodes in place of the recipe's backend.

    Attributes:
        bad: counts of bad images.
    """

    def __init__(
        self,
        recipe: Recipe,
        datasets: Sequence[Dataset],
        tokenizer: Tokenizer,
        ahead: int,
        world: int = 1,
        decoder: Decoder | DeviceDecoder | None = None,
    ) -> None:
        self._recipe, self._datasets, self._tokenizer = recipe, datasets, tokenizer
        self._framing = Framing.of(recipe)
        assert self._framing.longest is None, "systems of ITC read squares"
        self._canvas = self._framing.side, self._framing.side
        self._ahead = ahead
        images = sum(dataset.images for dataset in datasets)
        self.bad = BadImages(recipe.data.max_bad_share, images // world)
        self._sources = Sources(datasets, frozenset(), recipe.data.open_shards)
        self._decoder = decoder or open_decoder(recipe.data.decoder, dist.device())
        self._studio: PictureMaker | None = None
        self._prefetcher: Prefetcher[_Made] | None = None
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, step: int, first: int, names: Names) -> None:
        """Begins a request and returns at once.

        Args:
            step: the step that will use it; with the sample it decides the crops.
            first: the first place's number in the pool.
            names: called in the fetcher's thread.
        """
        if self._prefetcher is None:
            self._prefetcher = self._start()
        self._requests.put(_Request(step, first, names))

    def take(self) -> Fetched:
        """Returns the oldest request's images and texts, placed as a batch's are; waits for them.

        Raises:
            DataError: too many images are bad, or a shard is damaged.
            RunError: nothing came for `data.timeout_seconds`.
        """
        assert self._prefetcher is not None, "ask first"
        try:
            fetched, mark = next(self._prefetcher)
        except (StopIteration, DataError, RunError):
            self.close()
            raise
        assert self._studio is not None, "it lives as long as the prefetcher"
        self._studio.lane.hand_over(mark, fetched.images)
        return fetched

    def close(self) -> None:
        """Ends all threads; what was fetched is dropped. Harmless when called twice."""
        ended = True
        if self._prefetcher is not None:
            self._requests.put(None)
            ended = self._prefetcher.close()
            self._prefetcher, self._requests = None, queue.SimpleQueue()
        if self._studio is not None:
            self._studio.close(wait=ended)  # what hangs, hangs in a read: waiting would hang too
            self._studio = None

    def _start(self) -> Prefetcher[_Made]:
        data = self._recipe.data
        self._studio = make_studio(self._decoder, data.workers, Annotations(None, None))
        made = self._made(self._studio, self._requests)
        return Prefetcher(made, self._ahead, data.timeout_seconds, "fetched negatives")

    def _made(self, studio: PictureMaker, requests: queue.SimpleQueue[_Request | None]) -> Iterator[_Made]:
        while (request := requests.get()) is not None:
            fetched = self._make(studio, request)
            yield pinned(fetched) if torch.cuda.is_available() else fetched, studio.lane.mark()

    def _make(self, studio: PictureMaker, request: _Request) -> Fetched:
        names = request.names()
        samples = names.numpy()
        keys = fold(np.array([key_of(self._recipe.seed, request.step, "fetched")]), samples[:, 0])
        images, rows = self._images(studio, keys, samples[:, 0])
        texts = self._texts(samples[:, 1]) + self._texts(samples[:, 0])
        parts = self._tokenizer.encode(texts, self._recipe.model.text.max_length)
        ids, mask, special = (torch.from_numpy(part).chunk(2) for part in parts)
        return Fetched(
            images,
            text_ids=ids[0],
            text_mask=mask[0],
            special_mask=special[0],
            caption_ids=ids[1],
            caption_mask=mask[1],
            rows=torch.from_numpy(np.stack([rows, self._rows(samples[:, 1])], 1)),
            samples=names,
            places=torch.arange(request.first, request.first + len(samples)),
            image_keys=torch.from_numpy(keys),
        )

    def _images(
        self, studio: PictureMaker, keys: np.ndarray, samples: np.ndarray
    ) -> tuple[Tensor, np.ndarray]:
        """Returns float32 [F, 3, S, S], and int64 [F] the image rows, `NONE` where there is no image."""
        pictures, rows = studio.blank(len(samples), self._canvas), self._rows(samples)
        empty = samples == NONE
        jobs = self._jobs(keys[~empty], samples[~empty], np.flatnonzero(~empty))
        for job, fault in zip(jobs, studio.finish(studio.start(jobs, pictures), pictures), strict=True):
            self.bad.seen += 1
            if fault is not None:
                self.bad.note(job.name, fault.reason)
                empty[job.place] = True
        studio.erase(np.flatnonzero(empty).tolist(), pictures)
        return pictures.images, np.where(empty, NONE, rows)

    def _jobs(self, keys: np.ndarray, samples: np.ndarray, places: np.ndarray) -> list[Job]:
        if not len(samples):
            return []
        source, own = self._sources.find_samples(samples)
        rows = self._sources.rows_of(source, own)
        stored, names = self._sources.read(source, rows), self._sources.names(source, rows)
        captions = self._sources.texts(source, own)
        augment = self._recipe.data.augment
        crops = training_crops(keys, stored, captions, self._framing, self._canvas, augment)
        return [Job(*parts) for parts in zip(stored, crops, places.tolist(), names, strict=True)]

    def _rows(self, samples: np.ndarray) -> np.ndarray:
        """Returns the samples' image rows numbered through, int64 [F], `NONE` where there is no sample."""
        out = np.full(len(samples), NONE)
        there = samples != NONE
        source, own = self._sources.find_samples(samples[there])
        out[there] = self._sources.row_numbers(source, self._sources.rows_of(source, own))
        return out

    def _texts(self, samples: np.ndarray) -> list[str]:
        """Returns the samples' texts, an empty one where there is no sample."""
        source, own = self._sources.find_samples(samples[samples != NONE])
        texts = iter(self._sources.texts(source, own))
        return ["" if sample == NONE else next(texts) for sample in samples.tolist()]
