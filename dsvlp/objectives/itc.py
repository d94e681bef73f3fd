"""Image-text contrast: which text is this image's, which image this text's? (FIBER, 2)

Where the official code differs, a key of the recipe has its value: `keys_gradient = false`,
`same_image = "negative"`, `queue_start = "noise"`, `queue_moves = "micro_step"`.

Legend: I images, T texts, P pairs, K pairs of the contrastive batch, Q places of the queue, L text
tokens, N image tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsvlp import dist
from dsvlp.layers.attention import initialise
from dsvlp.layers.poolers import Pooler
from dsvlp.objectives.base import Objective, Targets, accuracy
from dsvlp.objectives.contrast import Columns, columns
from dsvlp.objectives.queue import Queue
from dsvlp.passes import Passes, Past, Similarity
from dsvlp.recipe import ITC as Table
from dsvlp.types import Batch, Loss, States

# The optimizer keeps the temperature itself within these (its group's `bounds`); here its use is.
TEMPERATURE_BOUNDS = (0.001, 1.0)


@dataclass(frozen=True)
class ITCTargets(Targets):
    """The contrastive batch and what each own pair is told apart from.

    Attributes:
        weight: float32 [P].
        samples: int64 [P] in the data set.
        columns: the K pairs.
        keys: bool [P, K]: the columns of the softmax, the own one always among them.
        masked: float32 [P], columns left out because they show the own image.
    """

    weight: Tensor
    samples: Tensor
    columns: Columns
    keys: Tensor
    masked: Tensor


@dataclass(frozen=True)
class Contrast:
    """Logits of both directions, float32 [P, K + Q], and the temperature they were divided by."""

    image_to_text: Tensor
    text_to_image: Tensor
    temperature: Tensor


class ITC(Objective):
    """Contrasts the unimodal features of a batch's pairs, of all ranks where asked, and of a queue.

    In evaluation the queue is left out: a held-out loss depends on the weights and the data alone.

    Args:
        table: the recipe's table.
        width: D, of the features.
        image_width, text_width: of the two towers' states.
    """

    name = "itc"

    def __init__(self, table: Table, width: int, image_width: int, text_width: int) -> None:
        super().__init__(table.view)
        self.table = table
        self.image_transform = nn.Linear(image_width, width)
        self.text_transform = nn.Linear(text_width, width)
        self.image_pooler, self.text_pooler = Pooler(width), Pooler(width)
        for part in (self.image_transform, self.text_transform, self.image_pooler, self.text_pooler):
            initialise(part, width)
        self.temperature = nn.Parameter(torch.tensor([table.temperature]))  # DeepSpeed refuses scalars
        self.queue = Queue(table.queue, width, table.queue_start == "noise") if table.queue else None

    @classmethod
    def from_recipe(cls, table: Table, model_table: Any, model: Any, facts: Any) -> "ITC":
        """Returns the objective for a model of `image_width`, `text_width` and `width`."""
        return cls(table, model.width, model.image_width, model.text_width)

    def embed_image(self, image: States) -> Tensor:
        """Returns float32 unit vectors [I, D] of unimodal image states [I, N, .]: of the tokens' mean."""
        tokens = self.image_transform(image.tokens)
        mask = image.mask[..., None].to(tokens.dtype)
        return _unit(self.image_pooler((tokens * mask).sum(1) / mask.sum(1)))

    def embed_text(self, text: States) -> Tensor:
        """Returns float32 unit vectors [T, D] of unimodal text states [T, L, .]: of the first token."""
        return _unit(self.text_pooler(self.text_transform(text.tokens[:, 0])))

    def forward(self, *similarities: Tensor) -> tuple[Tensor, ...]:
        """Returns similarities divided by the temperature, and it, detached, last.

        The temperature is used in here alone: ZeRO-3 holds it between this module's hooks only.
        """
        temperature = self.temperature.clamp(*TEMPERATURE_BOUNDS)
        return *(similarity / temperature for similarity in similarities), temperature.detach()[0]

    def prepare(self, view: Batch) -> tuple[Batch, ITCTargets]:
        """Returns the view as it is, and the pairs that each is told apart from. Where the contrastive
        batch is that of all ranks, all must call."""
        assert view.samples is not None, "the loader names the samples"
        found = columns(view, self.gathered)
        keys = found.counts.expand(found.own, -1)
        own = found.targets[:, None] == torch.arange(len(found.images), device=keys.device)
        same = found.same_image() & keys & ~own
        if self.table.same_image == "masked":
            keys = keys & ~same
        else:
            same = torch.zeros_like(same)
        masked = same.sum(1).float()
        return view, ITCTargets(view.weight.sum(), view.weight, view.samples, found, keys | own, masked)

    def begin(self, passes: Passes, targets: ITCTargets) -> Contrast:
        """Returns the logits, and leaves those of the batch as `passes.similarity`."""
        queue = self.queue if self.training else None
        if queue is not None and self.table.queue_moves == "micro_step":
            queue.move()
        rows = passes.view(self.view).pairs
        image = self.embed_image(passes.unimodal_image(self.view))[rows[:, 0]]  # [P, D]
        text = self.embed_text(passes.unimodal_text(self.view))[rows[:, 1]]
        with torch.autocast(image.device.type, enabled=False):
            contrast = self._contrast(image, text, targets, queue)
        past = None if queue is None else _past(contrast, queue, image, text)
        self._offer(passes, contrast, targets.columns, past)
        if queue is not None and torch.is_grad_enabled():
            found = targets.columns
            queue.remember(image, text, found.mine(found.images), targets.samples, targets.weight > 0)
        return contrast

    def _contrast(self, image: Tensor, text: Tensor, targets: ITCTargets, queue: Queue | None) -> Contrast:
        allowed = targets.keys
        image_keys, text_keys = self._keys(image, text)
        if queue is not None:
            image_keys, text_keys = torch.cat((image_keys, queue.image)), torch.cat((text_keys, queue.text))
            past = queue.negatives(
                targets.columns.mine(targets.columns.images), self.table.same_image == "negative"
            )
            allowed = torch.cat((allowed, past), 1)
        *logits, temperature = self(image @ text_keys.T, text @ image_keys.T)
        image_to_text, text_to_image = (each.masked_fill(~allowed, -torch.inf) for each in logits)
        return Contrast(image_to_text, text_to_image, temperature)

    def _keys(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the pairs are compared with, both [K, D]."""
        both = torch.cat((image, text), 1)
        if not self.table.keys_gradient:
            both = both.detach()
        if self.gathered:
            both = dist.gather_with_gradient(both)
        image_keys, text_keys = both.chunk(2, 1)
        return image_keys, text_keys

    def _offer(self, passes: Passes, contrast: Contrast, found: Columns, past: Past | None) -> None:
        batch = slice(0, len(found.images))
        passes.similarity = Similarity(
            contrast.image_to_text[:, batch].detach(),
            contrast.text_to_image[:, batch].detach(),
            found.first,
            past,
        )

    def loss(self, passes: Passes, targets: ITCTargets, begun: Contrast | None = None) -> Loss:
        """Returns the mean of both directions' cross-entropies, summed over pairs."""
        assert begun is not None
        labels, weight = targets.columns.targets, targets.weight
        directions = (begun.image_to_text, begun.text_to_image)
        forth, back = (F.cross_entropy(logits, labels, reduction="none") for logits in directions)
        right = [accuracy(logits.detach().argmax(1), labels, weight) for logits in directions]
        both = torch.stack([torch.stack(part) for part in right]).sum(0)
        one = torch.ones_like(begun.temperature)
        return Loss(
            ((forth + back) / 2 * weight).sum(),
            targets.count,
            {
                "accuracy": (both[0], both[1]),
                "image_to_text_accuracy": right[0],
                "text_to_image_accuracy": right[1],
                "temperature": (begun.temperature, one),
                "masked_pairs": ((targets.masked * weight).sum(), weight.sum()),
            },
        )

    def after_step(self, finite: Tensor) -> None:
        """Moves the queue by the step's pairs. Every rank must call."""
        if self.queue is not None:
            self.queue.settle(finite)

    def constant(self, targets: ITCTargets) -> Tensor:
        """Returns (sum of the logarithms of the numbers of keys, of their inverses, pairs), float64 [3]."""
        keys, weight = targets.keys.sum(1).double(), targets.weight.double()
        return torch.stack([(keys.log() * weight).sum(), (weight / keys).sum(), weight.sum()])

    def constant_loss(self, statistics: Tensor) -> dict[str, float]:
        """Returns loss and accuracy of holding all of a batch's keys for equally likely."""
        loss, right = (statistics[:2] / statistics[2].clamp(min=1)).tolist()
        return {"loss": loss, "accuracy": right}


def _past(contrast: Contrast, queue: Queue, image: Tensor, text: Tensor) -> Past:
    last = slice(-len(queue.rows), None)
    return Past(
        contrast.image_to_text[:, last].detach(),
        contrast.text_to_image[:, last].detach(),
        queue.rows,
        queue.samples,
        queue.image,
        queue.text,
        image.detach(),
        text.detach(),
        contrast.temperature,
    )


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
