"""A trained system that encodes, matches and shows where its words look.

Legend: I images, T texts, B pairs, L text tokens, N image tokens, D width, h x w grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from dsvlp import dist
from dsvlp.data import check
from dsvlp.data.dataset import Dataset
from dsvlp.data.features.objects import read_images
from dsvlp.data.fit import check_features
from dsvlp.data.frames import Framing
from dsvlp.data.reading import read_picture, together
from dsvlp.data.text import Tokenizer
from dsvlp.engine.exported import TOKENIZER, is_export
from dsvlp.engine.inference import Inference, Trained, load_trained
from dsvlp.errors import DataError, RunError
from dsvlp.predict.export import read
from dsvlp.recipe import SemVLPModel, reads_objects
from dsvlp.system import EmbedRequest, ImageRequest, MatchRequest, TextRequest
from dsvlp.types import Encoded, States

SPACE = "\u0120"  # how byte pairs write the space before a word

ImageFile = str | Path | bytes  # the path of an image file, or its bytes


class Attentive(Protocol):
    """A model that shows where words look."""

    stride: int

    def cross_attention(self, image: States, text: States) -> Tensor:
        """Returns the words' attention over the grid's cells [layers, B, H, L, N]."""


@dataclass(frozen=True)
class WordAttention:
    """Where one word of a text looks.

    Attributes:
        word: the word, its pieces joined.
        map: float32 [h, w], share of the word's attention on each cell; sums to 1.
    """

    word: str
    map: np.ndarray


class Predictor:
    """A trained system for use: evaluation mode, no gradients, fp32. Made by `load`.

    Attributes:
        trained: recipe, facts, system, step.
        tokenizer: the one it was trained with.
        device: where it runs.
    """

    def __init__(self, trained: Trained, tokenizer: Tokenizer, device: torch.device) -> None:
        self.trained, self.tokenizer, self.device = trained, tokenizer, device
        self._system = Inference(trained.system, "fp32", device)

    @torch.inference_mode()
    def encode_image(self, images: Sequence[ImageFile]) -> States:
        """Returns image states before fusion, tokens [I, N, D].

        Raises:
            DataError: an image that cannot be read.
            RunError: the system reads region features in place of pictures.
        """
        if reads_objects(self.trained.recipe):
            raise RunError(
                f"{self.trained.recipe.model.system} reads region features, not pictures",
                "rows of a data set that has them",
                "Use encode_rows, or --features and --row of `dsvlp predict`",
            )
        framing = Framing.of(self.trained.recipe)
        return self._encoded(*together([_picture(image, framing) for image in images], framing))

    @torch.inference_mode()
    def encode_rows(self, dataset: Dataset, rows: Sequence[int]) -> States:
        """Returns image states before fusion of a data set's images: of its region features where the system
        reads those, tokens [I, N, D].

        Raises:
            DataError: the data set has not the features that the system reads, or an image cannot be read.
        """
        numbers = np.array(rows, np.int64)
        outside = numbers[(numbers < 0) | (numbers >= dataset.images)]
        if len(outside):
            raise DataError(
                f"{dataset.path} has no row {outside[0]}",
                f"0 to {dataset.images - 1}",
                "Choose one of these: `dsvlp data show` draws them",
            )
        if not reads_objects(self.trained.recipe):
            return self.encode_image([stored.jpeg for stored in check.rows(dataset, numbers)])
        check_features(self.trained.recipe, dataset)
        assert dataset.features is not None
        return self._encoded(*read_images(dataset.features, numbers))

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> States:
        """Returns text states before fusion, tokens [T, L, D]; longer texts are cut as in training."""
        ids, mask = self._ids(texts)
        return cast(States, self._system(TextRequest(ids, mask)))

    @torch.inference_mode()
    def score(self, images: States, texts: States) -> Tensor:
        """Returns the probability [B] that the rows of both belong together.

        Raises:
            RunError: the system was trained without image-text matching.
        """
        if self.trained.recipe.objectives.itm is None:
            raise RunError(
                "this system was trained without objectives.itm and cannot match",
                "a system with ITM",
                "Use `similarity` where it has objectives.itc, or train one with objectives.itm={}",
            )
        _, logits = cast(tuple[Encoded, Tensor], self._system(MatchRequest(images, texts)))
        return torch.sigmoid(logits)

    @torch.inference_mode()
    def similarity(self, images: States, texts: States) -> Tensor:
        """Returns ITC's cosine [B] of aligned rows of both: what retrieval compares before it looks closer.

        Raises:
            RunError: the system was trained without image-text contrast.
        """
        if self.trained.recipe.objectives.itc is None:
            raise RunError(
                "this system was trained without objectives.itc and cannot compare",
                "a system with ITC",
                "Use `score` where it has objectives.itm, or train one with objectives.itc={}",
            )
        image, text = cast(tuple[Tensor, Tensor], self._system(EmbedRequest(images, texts)))
        return (image * text).sum(1)

    def match(self, image: ImageFile, text: str) -> float:
        """Returns the probability that the text belongs to the image."""
        return float(self.score(self.encode_image([image]), self.encode_text([text])))

    @torch.inference_mode()
    def attention(self, image: ImageFile, text: str) -> list[WordAttention]:
        """Returns where each word looks: cross-attention, mean over layers, heads and the word's pieces.

        FIBER's layers of different grids are brought to the last stage's by the model.

        Raises:
            RunError: queries stand in the place of the grid, or words and image are one stream.
        """
        model, recipe = cast(Attentive, self.trained.system.model), self.trained.recipe.model
        if not self.shows_words:
            raise RunError(
                f"model.visual_queries = {recipe.visual_queries}: words look at queries, not at places"
                if recipe.visual_queries
                else f"{recipe.system} has no attention from words to the places of a picture",
                "a system with cross-attention whose image tokens are the grid",
                "Use `score`, or train such a one: fiber, meter, or svl without visual queries",
            )
        assert not isinstance(recipe, SemVLPModel), "it has no cross-attention of words"
        weights = model.cross_attention(self.encode_image([image]), self.encode_text([text]))
        side = recipe.image_size // model.stride
        maps = weights.mean((0, 2))[0].unflatten(-1, (side, side)).float().cpu().numpy()  # [L, h, w]
        ids, mask = self._ids([text])
        tokens = self.tokenizer.tokens(ids[0, mask[0]].tolist())
        return join_pieces(tokens[1:-1], maps[1 : len(tokens) - 1])

    @property
    def shows_words(self) -> bool:
        """Returns whether `attention` can say where words look: on a grid, by attention between streams."""
        has_attention = hasattr(self.trained.system.model, "cross_attention")
        return has_attention and not self.trained.recipe.model.visual_queries

    def _encoded(self, images: Tensor, mask: Tensor | None) -> States:
        mask = None if mask is None else mask.to(self.device)
        return cast(States, self._system(ImageRequest(images.to(self.device), mask)))

    def _ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        length = self.trained.recipe.model.text.max_length
        ids, mask, _ = self.tokenizer.encode(texts, length)
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)


def load(folder: str | Path, device: torch.device | None = None) -> Predictor:
    """Returns the trained system of a run's folder or of an export.

    Args:
        folder: what `dsvlp train --run` or `dsvlp export --out` made.
        device: where it runs; None: the GPU where there is one.

    Raises:
        RunError, CheckpointError: nothing is there, or it is damaged.
    """
    trained, tokenizer = open_trained(Path(folder))
    return Predictor(trained, tokenizer, device or dist.device())


def open_trained(folder: Path) -> tuple[Trained, Tokenizer]:
    """Returns the system and tokenizer of an export, or of a run's newest checkpoint."""
    if is_export(folder):
        return read(folder)
    if not (folder / "recipe.json").is_file():
        raise RunError(
            f"{folder} is neither a run nor an export",
            "a folder with recipe.json (dsvlp train) or export.json (dsvlp export)",
            "Check the path",
        )
    return load_trained(folder), Tokenizer.load(folder / TOKENIZER)


def join_pieces(tokens: Sequence[str], maps: np.ndarray) -> list[WordAttention]:
    """Returns one entry a word, its pieces joined.

    WordPiece marks the pieces that belong to the word before by "##", RoBERTa's byte pairs those that
    begin a word by the sign for a space.

    Args:
        tokens: names of the tokens, without [CLS] and [SEP].
        maps: float32 [tokens, h, w].
    """
    words: list[tuple[str, list[np.ndarray]]] = []
    byte_pairs = any(token.startswith(SPACE) for token in tokens)
    for token, piece in zip(tokens, maps, strict=True):
        follows = not token.startswith(SPACE) if byte_pairs else token.startswith("##")
        name = token.removeprefix("##").removeprefix(SPACE)
        if follows and words:
            words[-1] = (words[-1][0] + name, [*words[-1][1], piece])
        else:
            words.append((name, [piece]))
    return [WordAttention(word, np.mean(pieces, 0)) for word, pieces in words]


def read_bytes(image: ImageFile) -> bytes:
    """Returns an image file's bytes; raises `DataError` where it cannot be read."""
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise DataError(
            f"{image} cannot be read: {error.strerror}", "an image file", "Check the path"
        ) from error


def _picture(image: ImageFile, framing: Framing) -> Tensor:
    name = "the image" if isinstance(image, bytes) else str(image)
    return read_picture(read_bytes(image), framing, name)
