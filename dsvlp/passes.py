"""One step's forward passes: asked for by view and kind, run on demand, remembered.

An objective asks in its `begin` and reads in its `loss`. What is asked for before the first result
is read runs together: all fused pairs of a micro-batch, whatever their view, go through the fusion
in one call.

**Prefixes.** What lies below the fusion is shared by identity: a view made with
`dataclasses.replace` keeps the tensors it did not touch, so an image encoder runs once for a `clean`
view and a `masked` view whose images are the same tensor (FIBER's shared prefixes), and a text
encoder once where only the image was masked. With `share = False` each pass encodes its own inputs,
as the papers' code does; without dropout both give the same losses and gradients.

Legend: I images, T texts, P pairs of a view, B asked pairs, F fetched images and texts, Q places of
ITC's queue, N image tokens, L text tokens, D width.
Floor 1: knows no model and no loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dsvlp import dist
from dsvlp.types import Batch, Encoded, Fetched, Mode, States

Fetch = Callable[[Tensor], Fetched]
"""Returns past pairs' images and texts on the device, of int64 [F, 2]: the sample of each image and of
each text, negative where a place stays empty. Waits for them on the host."""


class Encoder(Protocol):
    """What passes need of a model. All go through `forward` hooks of the model's submodules.

    `encode_*` returns what the fusion starts from: the whole tower where fusion is on top, the tower
    below its first fused block where it is inside. `finish_*` goes on alone to the unimodal result.
    """

    def encode_image(
        self, images: Tensor, image_mask: Tensor | None, image_keys: Tensor | None = None
    ) -> States:
        """Returns image states [I, N, D] below the fusion; what is drawn for training depends on the keys."""

    def encode_text(self, text_ids: Tensor, text_mask: Tensor) -> States:
        """Returns text states [T, L, D] below the fusion."""

    def finish_image(self, image: States) -> States:
        """Returns unimodal image states [I, N', D'] of those below the fusion."""

    def finish_text(self, text: States) -> States:
        """Returns unimodal text states [T, L, D] of those below the fusion."""

    def fuse(self, image: States, text: States, mode: Mode | None = None) -> Encoded:
        """Returns fused states of B aligned rows of both; `mode` is said to a model of two readings alone."""


@dataclass(frozen=True)
class Past:
    """ITC's queue as a micro-batch sees it, detached: what the next step's negatives are fetched by.

    Attributes:
        image_to_text, text_to_image: float32 [P, Q] logits with Q past pairs; minus infinity where ITC leaves
            a pair out.
        rows, samples: int64 [Q] image rows and samples in the data set, negative where there is no pair.
        image, text: float32 [Q, D] their unit vectors.
        own_image, own_text: float32 [P, D] the micro-batch's.
        temperature: float32 scalar that divides similarities.
    """

    image_to_text: Tensor
    text_to_image: Tensor
    rows: Tensor
    samples: Tensor
    image: Tensor
    text: Tensor
    own_image: Tensor
    own_text: Tensor
    temperature: Tensor

    def logits(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Returns float32 [P, F], (image to text, text to image), with unit vectors [F, D] of others."""
        with torch.autocast(image.device.type, enabled=False):
            return self.own_image @ text.T / self.temperature, self.own_text @ image.T / self.temperature


@dataclass(frozen=True)
class Similarity:
    """ITC's similarities, detached: what ITM's hard negatives are drawn by.

    The columns are the pairs of the contrastive batch in the order of the global batch: this rank's, or
    those of all ranks.

    Attributes:
        image_to_text: float32 [P, K] logits (temperature applied) of each pair's image with K texts; minus
            infinity where ITC leaves a text out: at weight 0, and at other texts of the same image.
        text_to_image: float32 [P, K], the same of each pair's text with K images.
        first: column of this rank's first pair.
        past: the queue's pairs, in training where there is a queue.
    """

    image_to_text: Tensor
    text_to_image: Tensor
    first: int
    past: Past | None = None


class Fused:
    """Fused states that were asked for; `result` runs whatever is outstanding.

    Once settled it forgets the passes, which remember it: a cycle would keep a step's whole graph of
    activations until the garbage collector comes by.
    """

    def __init__(self, run: Callable[[], None]) -> None:
        self._run: Callable[[], None] | None = run
        self._encoded: Encoded | None = None

    def settle(self, encoded: Encoded) -> None:
        """Sets the result."""
        self._encoded, self._run = encoded, None

    def result(self) -> Encoded:
        """Returns tokens [B, ., D] of both streams and the pooled feature [B, D]."""
        if self._run is not None:
            self._run()
        assert self._encoded is not None
        return self._encoded


class Passes:
    """Runs and remembers the forward passes of one micro-batch.

    Args:
        model: the encoder.
        views: view name -> batch as the objectives left it.
        share: whether passes share their prefixes.
        fetch: brings past pairs while the step waits; None where no objective asks.

    Attributes:
        similarity: set by ITC's `begin`, read by hard negatives.
    """

    def __init__(
        self, model: Encoder, views: dict[str, Batch], share: bool = True, fetch: Fetch | None = None
    ) -> None:
        self._model, self._views, self._share, self._fetch = model, views, share, fetch
        self._prefixes: list[tuple[str, Tensor, Tensor | None, States]] = []
        self._gathered: dict[tuple[str, str], States] = {}
        self._by_view: dict[str, Fused] = {}
        self._outstanding: list[tuple[Fused, States, States]] = []
        self.similarity: Similarity | None = None

    def view(self, name: str) -> Batch:
        """Returns the prepared batch of a view."""
        return self._views[name]

    def image(self, view: str) -> States:
        """Returns image states below the fusion, one row an image: [I, N, D]."""
        batch = self._views[view]
        return self._remembered(view, batch.images, batch.image_mask, self._encode_images(batch))

    def text(self, view: str) -> States:
        """Returns text states below the fusion, one row a text: [T, L, D]."""
        batch = self._views[view]
        return self._remembered(view, batch.text_ids, batch.text_mask, self._model.encode_text)

    def unimodal_image(self, view: str) -> States:
        """Returns the image tower's own result, untouched by any text: [I, N', D']."""
        batch = self._views[view]
        prefix = (
            self.image(view) if self._share else self._encode_images(batch)(batch.images, batch.image_mask)
        )
        return self._model.finish_image(prefix)

    def unimodal_text(self, view: str) -> States:
        """Returns the text tower's own result, untouched by any image: [T, L, D]."""
        batch = self._views[view]
        prefix = self.text(view) if self._share else self._model.encode_text(batch.text_ids, batch.text_mask)
        return self._model.finish_text(prefix)

    def fused(self, view: str) -> Encoded:
        """Returns fused states of the view's own pairs: tokens [P, ., D], pooled [P, D]."""
        return self.ask(view).result()

    def ask(self, view: str, pairs: Tensor | None = None, *, gathered: bool = False) -> Fused:
        """Asks for fused states; those of all askers before the first `result` run in one call.

        Args:
            view: whose images and texts are meant.
            pairs: int64 [B, 2] (image row, text row); None: the view's own pairs, run once for all askers.
                Rows behind the view's own are those of what was fetched for it.
            gathered: rows number the images and texts of all ranks, rank by rank. Every rank must ask.
        """
        if pairs is None:
            if view not in self._by_view:
                self._by_view[view] = self._asked(*self._aligned(view, self._views[view].pairs, False))
            return self._by_view[view]
        return self._asked(*self._aligned(view, pairs, gathered))

    def fetch(self, view: str, samples: Tensor) -> Fetched:
        """Brings past pairs' images and texts into a view, behind its own; waits for them on the host.

        Args:
            view: the view; its prepared batch stays as it is outside of these passes.
            samples: int64 [F, 2], see `Fetch`; equally many on every rank.
        """
        assert self._fetch is not None, "a training step brings what is asked for"
        fetched = self._fetch(samples)
        self._views = {**self._views, view: replace(self._views[view], fetched=fetched)}
        return fetched

    def _aligned(self, view: str, pairs: Tensor, gathered: bool) -> tuple[States, States]:
        """Returns image and text states [B, ., D] of pairs; without sharing, encoded for these alone."""
        batch = self._views[view]
        own = pairs is batch.pairs
        if self._share or own:
            image, text = self.image(view), self.text(view)
            if gathered:
                image, text = (self._of_all_ranks(view, part) for part in ("image", "text"))
            elif batch.fetched is not None and not own:
                past = self._fetched(view, batch.fetched)
                image, text = joined([image, past[0]]), joined([text, past[1]])
            return select(image, pairs[:, 0]), select(text, pairs[:, 1])
        batch = with_fetched(batch)
        images, masks, keys = batch.images, batch.image_mask, batch.image_keys
        ids, text_masks = batch.text_ids, batch.text_mask
        if gathered:
            parts = (images, keys, ids, text_masks)
            images, keys, ids, text_masks = (dist.all_gather(part).flatten(0, 1) for part in parts)
            masks = None if masks is None else dist.all_gather(masks).flatten(0, 1)
        rows, columns = pairs.unbind(1)
        image = self._model.encode_image(images[rows], None if masks is None else masks[rows], keys[rows])
        return image, self._model.encode_text(ids[columns], text_masks[columns])

    def _fuse(self, image: States, text: States) -> Encoded:
        """Returns fused states, read in the micro-batch's mode, which all its views have."""
        mode = next(iter(self._views.values())).mode
        if mode is None:
            return self._model.fuse(image, text)
        return self._model.fuse(image, text, mode)

    def _encode_images(self, batch: Batch) -> Callable[[Tensor, Tensor | None], States]:
        """Returns the image encoder with the keys of a view's images."""
        return partial(self._model.encode_image, image_keys=batch.image_keys)

    def _fetched(self, view: str, past: Fetched) -> tuple[States, States]:
        """Returns the prefixes of what was fetched for a view: [F, N, D] and [F, L, D]."""
        encode = partial(self._model.encode_image, image_keys=past.image_keys)
        image = self._remembered(view, past.images, None, encode)
        return image, self._remembered(view, past.text_ids, past.text_mask, self._model.encode_text)

    def _of_all_ranks(self, view: str, part: str) -> States:
        """Returns the prefixes of all ranks, with their gradient: [world x I, N, D]. Every rank must call.

        Under autocast they are sent as its dtype, to which the first matrix product would round them.
        """
        if (view, part) not in self._gathered:
            states = self.image(view) if part == "image" else self.text(view)
            device = states.tokens.device.type
            sent_as = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
            tokens = dist.gather_with_gradient(states.tokens, sent_as)
            mask = dist.all_gather(states.mask).flatten(0, 1)
            self._gathered[view, part] = States(tokens, mask)
        return self._gathered[view, part]

    def _asked(self, image: States, text: States) -> Fused:
        promise = Fused(self._run)
        self._outstanding.append((promise, image, text))
        return promise

    def _run(self) -> None:
        """Fuses everything outstanding: in one call where prefixes are shared, else one by one."""
        asked, self._outstanding = self._outstanding, []
        if not self._share or len(asked) == 1:
            for promise, image, text in asked:
                promise.settle(self._fuse(image, text))
            return
        sizes = [len(image.tokens) for _, image, _ in asked]
        encoded = self._fuse(joined([i for _, i, _ in asked]), joined([t for _, _, t in asked]))
        for (promise, _, _), part in zip(asked, _split(encoded, sizes), strict=True):
            promise.settle(part)

    def _remembered(
        self, view: str, first: Tensor, second: Tensor | None, run: Callable[..., States]
    ) -> States:
        for name, one, other, states in self._prefixes:
            if one is first and other is second and (self._share or name == view):
                return states
        states = run(first, second)
        self._prefixes.append((view, first, second, states))
        return states


def select(states: States, rows: Tensor) -> States:
    """Returns the states of the given rows; maps stay with the images and are not repeated."""
    return States(states.tokens[rows], states.mask[rows])


def with_fetched(view: Batch) -> Batch:
    """Returns a view whose images and texts go on with what was fetched for it: `Passes.ask` counts so."""
    past = view.fetched
    if past is None:
        return view
    assert view.image_mask is None, "what is fetched is not padded"
    return replace(
        view,
        images=torch.cat((view.images, past.images)),
        image_keys=torch.cat((view.image_keys, past.image_keys)),
        text_ids=torch.cat((view.text_ids, past.text_ids)),
        text_mask=torch.cat((view.text_mask, past.text_mask)),
        special_mask=torch.cat((view.special_mask, past.special_mask)),
    )


def joined(parts: list[States]) -> States:
    """Returns the rows of several states one after another; shorter ones end with tokens that are masked."""
    count = max(part.mask.shape[1] for part in parts)
    filled = [_filled(part, count - part.mask.shape[1]) for part in parts]
    return States(torch.cat([part.tokens for part in filled]), torch.cat([part.mask for part in filled]))


def _filled(states: States, missing: int) -> States:
    if not missing:
        return states
    return States(F.pad(states.tokens, (0, 0, 0, missing)), F.pad(states.mask, (0, missing)))


def _split(encoded: Encoded, sizes: list[int]) -> list[Encoded]:
    assert encoded.image is not None and encoded.text is not None and encoded.pooled is not None
    images, image_masks = encoded.image.tokens.split(sizes), encoded.image.mask.split(sizes)
    texts, text_masks = encoded.text.tokens.split(sizes), encoded.text.mask.split(sizes)
    pooled = encoded.pooled.split(sizes)
    return [
        Encoded(States(images[k], image_masks[k]), States(texts[k], text_masks[k]), pooled[k])
        for k in range(len(sizes))
    ]
