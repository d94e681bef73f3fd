"""FIBER: Swin and RoBERTa that read each other by gated cross-attention inside their blocks (FIBER, 1).

Legend: I images, T texts, B pairs, L text tokens, D text width, h x w grid, N = h * w cells of a stage,
C its width, H heads, k the pair of the fusion plan.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dsvlp.errors import RecipeError
from dsvlp.layers.attention import initialise
from dsvlp.layers.fused import FusedPair
from dsvlp.layers.gated import GatedCrossAttention
from dsvlp.layers.recompute import run_block
from dsvlp.layers.roberta import attend, text_layer
from dsvlp.models.roberta import RoBERTaTower, seen
from dsvlp.models.swin import SwinTower, initialise_swin
from dsvlp.models.towers import TwoTowers, whole
from dsvlp.recipe import FIBERModel
from dsvlp.types import Encoded, States

END = -1  # in the place of a pair's number


class FIBER(TwoTowers[FIBERModel]):
    """Two towers and a fusion plan: pairs of an image block and a text layer that read each other.

    Below the first pair the towers know nothing of each other: `encode_*` ends there, and what
    comes after runs alone (`finish_*`), fused (`fuse`) or as a decoder of text (`caption`).

    Attributes:
        plan: (number of the image block through all stages, number of the text layer), for each k.
    """

    def __init__(self, table: FIBERModel, image: SwinTower, text: RoBERTaTower) -> None:
        super().__init__(table, image, text)
        self.plan = [(image.number(stage, at), layer) for stage, at, layer in table.fusion.plan]
        self.captioning = table.captioning
        self.caption_projections = nn.ModuleDict()
        if table.captioning:
            for k, (stage, _, _) in enumerate(table.fusion.plan):
                if (own := table.image.width << (stage - 1)) != image.width:
                    self.caption_projections[str(k)] = nn.Linear(image.width, own)
            initialise(self.caption_projections, self.width)

    def _fusion(self, table: FIBERModel) -> list[FusedPair]:
        return [_pair(table, stage) for stage, _, _ in table.fusion.plan]

    def encode_image(
        self, images: Tensor, image_mask: Tensor | None = None, image_keys: Tensor | None = None
    ) -> States:
        """Returns what the first fused image block starts from: [I, N, C].

        Args:
            images: float32 [I, 3, H, W], of the model's own size.
            image_mask: not used: FIBER's images are full squares.

        Raises:
            RecipeError: images of another size.
        """
        return whole(self.image.run(self.image.embed(images), 0, self.plan[0][0]).flatten(1, 2))

    def encode_text(self, text_ids: Tensor, text_mask: Tensor) -> States:
        """Returns what the first fused text layer starts from, [T, L, D], of int64 ids and mask [T, L]."""
        tokens = self.text.run(self.text.embed(text_ids), seen(text_mask), 0, self.plan[0][1])
        return States(tokens, text_mask)

    def finish_image(self, image: States) -> States:
        """Returns the image tower's own tokens [I, N', C'], after its final norm; no text is read."""
        return whole(self.image.finished(self._image_top(image)))

    def finish_text(self, text: States) -> States:
        """Returns the text tower's own tokens [T, L, D]; no image is read."""
        start, stop = self.plan[0][1], len(self.text.layers)
        return States(self.text.run(text.tokens, seen(text.mask), start, stop), text.mask)

    def fuse(self, image: States, text: States) -> Encoded:
        """Returns fused states [B, N', D], [B, L, D] and the joint feature [B, 2 D] of B aligned rows.

        Both streams of a pair read the other as it was before the pair. Neither tower's last norm is
        applied; the transforms follow instead (FIBER, 0.4).
        """
        _, grid, tokens = next(step for step in self._steps(image, text) if step[0] == END)
        cells, words = self.image_transform(grid.flatten(1, 2)), self.text_transform(tokens)
        return self._encoded(words, text.mask, cells)

    def caption_image(self, image: States) -> States:
        """Returns what causal text reads: the image tower's tokens [I, N', C'] without its final norm."""
        return whole(self._image_top(image).flatten(1, 2))

    def caption(self, image: States, text_ids: Tensor, text_mask: Tensor) -> States:
        """Returns causal text states [B, L, D], whose token t tells of word t + 1 (FIBER, 1.6).

        No token looks ahead, from the first layer on; all fused layers read the same final image
        tokens, those of earlier stages through a projection.

        Args:
            image: what `caption_image` returned, of B aligned rows.
            text_ids: int64 [B, L].
            text_mask: bool [B, L].

        Raises:
            RecipeError: the model has no projections for captions.
        """
        if not self.captioning:
            raise RecipeError(
                "this FIBER has no projections of the image for causal text",
                "a model of a recipe with model.captioning = true",
            )
        tokens, keys = self.text.embed(text_ids), seen(text_mask, causal=True)
        layers, below = self.text.layers, 0
        for k, (_, layer) in enumerate(self.plan):
            tokens = self.text.run(tokens, keys, below, layer)
            context = image.tokens
            if str(k) in self.caption_projections:
                context = self.caption_projections[str(k)](context)
            fused = (layers[layer], tokens, keys, self._pairs[k].text, context)
            tokens = run_block(text_layer, layer, self.checkpointing, *fused)
            below = layer + 1
        tokens = self.text.run(tokens, keys, below, len(layers))
        return States(self.text_transform(tokens), text_mask)

    @torch.no_grad()
    def cross_attention(self, image: States, text: States) -> Tensor:
        """Returns the words' attention over the last stage's cells [pairs of the plan, B, H, L, N'].

        For overlays, not training. What a word pays to finer cells of earlier stages is summed.
        """
        steps = self._steps(image, text)
        return torch.stack([self._look(grid, tokens, text.mask, k) for k, grid, tokens in steps if k != END])

    @property
    def _pairs(self) -> list[FusedPair]:
        return [pair for pair in self.fusion if isinstance(pair, FusedPair)]

    def _steps(self, image: States, text: States) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields (k, grid, tokens) before each pair, and (END, grid, tokens) at the end of both towers."""
        tokens, keys, layers = text.tokens, seen(text.mask), self.text.layers
        block, layer = self.plan[0]
        grid = self._grid(image, block)
        for k, (fused_at, fused_layer) in enumerate(self.plan):
            grid = self.image.run(grid, block, fused_at)
            tokens = self.text.run(tokens, keys, layer, fused_layer)
            yield k, grid, tokens
            block, layer = fused_at + 1, fused_layer + 1
            norm = layer < len(layers)  # the last layer's output norm is skipped (FIBER, 0.4)
            pair = (self.image.blocks[fused_at], layers[fused_layer], grid, tokens, text.mask, norm)
            grid, tokens = run_block(self.fusion[k], k, self.checkpointing, *pair)
            grid = self.image.merged(grid, fused_at)
        if layer < len(layers):
            tokens = self.text.run(tokens, keys, layer, len(layers) - 1)
            tokens = text_layer(layers[-1], tokens, keys, output_norm=False)
        yield END, self.image.run(grid, block, len(self.image.blocks)), tokens

    def _look(self, grid: Tensor, tokens: Tensor, text_mask: Tensor, k: int) -> Tensor:
        """Returns pair k's attention of words over the last stage's cells [B, H, L, N']."""
        query = attend(self.text.layers[self.plan[k][1]], tokens, seen(text_mask))
        over = self._pairs[k].text.probabilities(query, grid.flatten(1, 2))  # [B, H, L, N]
        side = self.image.image_size // self.stride
        cells = over.unflatten(-1, (side, grid.shape[1] // side, side, -1))
        return cells.sum((-3, -1)).flatten(-2)

    def _grid(self, image: States, block: int) -> Tensor:
        return image.tokens.unflatten(1, self.image.blocks[block].input_resolution)  # [I, h, w, C]

    def _image_top(self, image: States) -> Tensor:
        block = self.plan[0][0]
        return self.image.run(self._grid(image, block), block, len(self.image.blocks))


def _pair(table: FIBERModel, stage: int) -> FusedPair:
    """Returns a new pair for a stage (from 1), its gates 0."""
    swin, roberta = table.image, table.text
    width = swin.width << (stage - 1)
    image = GatedCrossAttention(
        width, swin.heads[stage - 1], roberta.width, 0.0, table.fusion.image_query_norm
    )
    text = GatedCrossAttention(roberta.width, roberta.heads, width, roberta.dropout)
    initialise_swin(image, swin.width)
    initialise(text, roberta.width)
    return FusedPair(image, text)
