"""Masked language modelling: name the hidden words from the rest and the picture (SVL, L_MLM).

Legend: P pairs, L text tokens, K capacity for masked positions, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dsvlp import seed
from dsvlp.layers.attention import NORM_EPS, initialise
from dsvlp.objectives.base import (
    Objective,
    Targets,
    capacity,
    class_constant,
    class_counts,
    classified,
    counted_pairs,
    first_of,
    mode_parts,
)
from dsvlp.passes import Passes
from dsvlp.recipe import MLM as Table
from dsvlp.types import Batch, DataFacts, Loss, Mode

MASK_SHARE, OTHER_SHARE = 0.8, 0.1  # of the chosen words; the last tenth is kept (BERT)


@dataclass(frozen=True)
class MLMTargets(Targets):
    """The masked positions, padded to a fixed capacity so that nothing waits for the device.

    Attributes:
        positions: int64 [K] indices into the flattened [P, L].
        labels: int64 [K] the true ids there.
        weight: float32 [K], 1 at masked positions, 0 at the capacity's rest.
    """

    positions: Tensor
    labels: Tensor
    weight: Tensor


class MLM(Objective):
    """Hides words and predicts those of the matched pairs with a decoder, tied to the word table or its own.

    Words are hidden in mismatched pairs too, although nothing is predicted there by default: were
    they hidden in true pairs alone, a [MASK] would tell ITM the answer.

    The norm's epsilon is BERT's for FIBER too, whose head is BERT's over RoBERTa's words: by the official
    model's numbers, unlike the specification's 1e-5 (FIBER, 1.5).

    Args:
        table: the recipe's table.
        words: the model's word table. A tied decoder holds the same Parameter, whose canonical name is
            the model's. It is an attribute of the decoder too, so that ZeRO-3 gathers it there.
        facts: the tokenizer's special ids and vocabulary.
    """

    name = "mlm"

    def __init__(self, table: Table, words: nn.Embedding, facts: DataFacts) -> None:
        super().__init__(table.view)
        vocabulary, width = words.weight.shape
        self.table = table
        self.facts = facts
        self.vocabulary = vocabulary
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=NORM_EPS))
        initialise(self.transform, width)
        self.decoder = _tied(words) if table.tied else nn.Linear(width, vocabulary)
        if not table.tied:
            initialise(self.decoder, width)

    @classmethod
    def from_recipe(cls, table: Table, model_table: Any, model: Any, facts: DataFacts) -> "MLM":
        """Returns the objective for a model with `word_embeddings`."""
        return cls(table, model.word_embeddings, facts)

    def prepare(self, view: Batch) -> tuple[Batch, MLMTargets]:
        """Returns the view with one text a pair, some of its words hidden, and what was hidden."""
        rows = view.pairs[:, 1]
        ids = view.text_ids[rows]
        hidden = self._hidden(view, ids.shape[1])
        own = torch.arange(len(rows), device=rows.device)
        masked = replace(
            view,
            text_ids=torch.where(hidden, self._corrupted(view.pair_keys, ids), ids),
            text_mask=view.text_mask[rows],
            special_mask=view.special_mask[rows],
            pairs=torch.stack((view.pairs[:, 0], own), 1),
            partner=own,
        )
        counted = counted_pairs(view, self.table.on_mismatched)
        return masked, self._targets(ids, hidden & counted[:, None], view.mode)

    def capacity(self, positions: int) -> int:
        """Returns K for a micro-batch of `positions` text positions."""
        return capacity(positions, self.table.probability)

    def _hidden(self, view: Batch, length: int) -> Tensor:
        """Returns bool [P, L]: the words to hide, never special tokens or padding."""
        drawn = seed.uniform(view.pair_keys, "mlm.select", length) < self.table.probability
        return drawn & ~view.special_mask[view.pairs[:, 1]]

    def _corrupted(self, keys: Tensor, ids: Tensor) -> Tensor:
        """Returns ids [P, L] as if every word had been chosen: 80% [MASK], 10% other, 10% kept."""
        length = ids.shape[1]
        draw = seed.uniform(keys, "mlm.replace", length)
        if self.table.other == "random":
            other = seed.integers(keys, "mlm.other", length, self.facts.vocabulary)
        else:
            other = torch.zeros_like(ids)
        out = torch.where(draw < MASK_SHARE + OTHER_SHARE, other, ids)
        return torch.where(draw < MASK_SHARE, self.facts.mask_id, out)

    def _targets(self, ids: Tensor, counted: Tensor, mode: Mode | None) -> MLMTargets:
        """Returns the targets among ids [P, L], where `counted`."""
        positions, weight = first_of(counted.flatten(), self.capacity(counted.numel()))
        modes = mode_parts(mode, positions // ids.shape[1])
        return MLMTargets(weight.sum(), positions, ids.flatten()[positions], weight, modes=modes)

    def begin(self, passes: Passes, targets: MLMTargets) -> None:
        """Asks for the view's fused pass."""
        passes.ask(self.view)

    def loss(self, passes: Passes, targets: MLMTargets, begun: None = None) -> Loss:
        """Returns the cross-entropy summed over masked positions, computed at no other."""
        text = passes.fused(self.view).text
        assert text is not None
        states = text.tokens.flatten(0, 1)[targets.positions]  # [K, D]
        logits = self.decoder(self.transform(states)).float()  # [K, V]
        return classified(logits, targets.labels, targets.weight, targets.count, modes=targets.modes)

    def constant(self, targets: MLMTargets) -> Tensor:
        """Returns how often each id is the target, float64 [V]."""
        return class_counts(targets.labels, targets.weight, self.vocabulary)

    def constant_loss(self, statistics: Tensor) -> dict[str, float]:
        """Returns loss and accuracy of always predicting the ids' shares."""
        return class_constant(statistics)


def _tied(words: nn.Embedding) -> nn.Linear:
    """Returns a decoder whose weight is the word table, with a bias of its own."""
    vocabulary, width = words.weight.shape
    decoder = nn.Linear(width, vocabulary, device="meta")
    decoder.weight = words.weight
    decoder.bias = nn.Parameter(torch.zeros(vocabulary))
    return decoder
