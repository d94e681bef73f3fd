"""A small system with everything that makes ZeRO and checkpoints go wrong, and its deterministic data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsvlp import recipe as recipes
from dsvlp.recipe import Recipe
from dsvlp.types import Loss

WORDS, WIDTH, BATCH, MICRO = 23, 7, 16, 4


@dataclass(frozen=True)
class Request:
    """Token ids [N] to be predicted from themselves; `poison` multiplies the loss.

    `detour`: through a layer that other steps leave out.
    """

    ids: Tensor
    poison: float = 1.0
    detour: bool = False


class Toy(nn.Module):
    """Odd sizes, a tied decoder, a frozen layer, an unused one, one that every second step uses, one of a
    CNN's name, dropout, a buffer, BatchNorm where asked."""

    seen: Tensor

    def __init__(self, dropout: float, statistics: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.model = nn.ModuleDict({"image": nn.ModuleDict({"trunk": nn.Linear(WIDTH, WIDTH)})})
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.batch_norm = nn.BatchNorm1d(WIDTH) if statistics else nn.Identity()
        self.layers = nn.Sequential(
            nn.Linear(WIDTH, 13), nn.LayerNorm(13), nn.GELU(), nn.Dropout(dropout), nn.Linear(13, WIDTH)
        )
        self.unused = nn.Linear(5, 3)
        self.detour = nn.Linear(WIDTH, WIDTH)
        self.decoder = nn.Linear(WIDTH, WORDS)
        self.decoder.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("derived", torch.arange(4), persistent=False)

    def forward(self, request: Request) -> dict[str, Loss]:
        """Returns the summed cross-entropy of each token given itself."""
        self.seen += 1
        trunk = self.model["image"]["trunk"]
        hidden = self.batch_norm(self.frozen(trunk(self.embedding(request.ids))))
        hidden = hidden + self.detour(hidden) if request.detour else hidden
        logits = self.decoder(hidden + self.layers(hidden))
        loss = nn.functional.cross_entropy(logits.float(), request.ids, reduction="sum") * request.poison
        return {"toy": Loss(loss, loss.new_tensor(float(len(request.ids))))}


def make_recipe(zero: str, precision: str = "fp32") -> Recipe:
    """Returns a recipe of 16 pairs a step in micro-batches of 4: SGD for the CNN, AdamW for the rest."""
    return recipes.load(
        "tiny_pixelbert",
        [
            f"engine.zero={zero}",
            f"engine.precision={precision}",
            f"batch.global_pairs={BATCH}",
            f"batch.micro_pairs={MICRO}",
            "optimizer.weight_decay=0.1",
            "optimizer.clip_norm=0.5",
            "optimizer.lr=0.01",
            "optimizer.cnn.lr=0.05",
        ],
    )


def micro_batch(step: int, index: int) -> Tensor:
    """Returns the ids [MICRO] of one quarter of a step's global batch: the same whoever computes it."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, WORDS, (BATCH,), generator=generator)[index * MICRO : (index + 1) * MICRO]
