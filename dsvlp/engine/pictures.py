"""Pictures and texts of what the losses see, for TensorBoard.

Legend: I images, H x W pixels, C classes.
"""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dsvlp.passes import with_fetched
from dsvlp.types import IMAGENET_DEVIATION, IMAGENET_MEAN

if TYPE_CHECKING:
    from dsvlp.engine.step import Shown
    from dsvlp.types import Batch

GAP = 2
CANVAS = 128  # pixels of a side on which boxes are drawn
PANEL, LINE, LETTERS = 300, 13, 46  # pixels of a text's panel and of its lines, letters of a line
SPACE = "\u0120"  # how byte pairs write the space before a word
ENDS = ("[CLS]", "[SEP]", "<s>", "</s>")
MATCHED, SWAPPED, PADDING = (40, 170, 70), (210, 60, 50), (255, 255, 255)


def inputs(batch: Batch, view: Batch) -> np.ndarray:
    """Returns a micro-batch as it was made and as the losses see it, uint8 [rows, columns, 3]."""
    if batch.object_labels is None:
        return input_grid(batch.images, view.images, view.matched, view.segmentation)
    return object_grid(batch, view)


def object_grid(batch: Batch, view: Batch, count: int = 8) -> np.ndarray:
    """Returns one row an image: its objects' boxes in the colours of their classes; those whose features the
    losses do not see as they are, filled.

    Args:
        batch: images [I, N, F + 4] as read.
        view: the same after the objectives' corruptions.
        count: images shown at most.
    """
    assert batch.object_labels is not None and batch.image_mask is not None
    changed = (batch.images != view.images).any(-1).cpu()  # [I, N]
    boxes = (batch.images[..., -4:].float().cpu() * (CANVAS - 1)).round().long().tolist()
    rows = []
    for index in range(min(count, len(boxes))):
        canvas = Image.new("RGB", (CANVAS, CANVAS), PADDING)
        draw = ImageDraw.Draw(canvas)
        pens = colours(batch.object_labels[index])
        for place in batch.image_mask[index].nonzero()[:, 0].tolist():
            pen = tuple(pens[place].tolist())
            draw.rectangle(boxes[index][place], outline=pen, fill=pen if changed[index, place] else None)
        rows.append(_row([np.asarray(canvas)], MATCHED if bool(view.matched[index]) else SWAPPED))
    return np.concatenate(rows)


def input_grid(
    augmented: Tensor, seen: Tensor, matched: Tensor, segmentation: Tensor | None, count: int = 8
) -> np.ndarray:
    """Returns one row an image: as augmented, as the losses see it (masked cells grey), its map's classes.

    A green bar on the left says that the image kept its own text, a red one that ITM swapped it.

    Args:
        augmented: float32 [I, 3, H, W], normalised.
        seen: the same after the objectives' corruptions.
        matched: bool [I].
        segmentation: int64 [I, H, W] classes, -1 where none; or None.
        count: images shown at most.

    Returns:
        uint8 [rows, columns, 3].
    """
    rows = []
    for index in range(min(count, len(augmented))):
        tiles = [to_pixels(augmented[index]), to_pixels(seen[index])]
        if segmentation is not None:
            tiles.append(colours(segmentation[index]))
        rows.append(_row(tiles, MATCHED if bool(matched[index]) else SWAPPED))
    return np.concatenate(rows)


def to_pixels(image: Tensor) -> np.ndarray:
    """Returns uint8 [H, W, 3] of a normalised float [3, H, W]."""
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    pixels = (image.detach().float().cpu() * deviation + mean).clamp(0, 1) * 255
    array: np.ndarray = pixels.round().to(torch.uint8).permute(1, 2, 0).numpy()  # [H, W, 3]
    return array


def colours(classes: Tensor) -> np.ndarray:
    """Returns uint8 [H, W, 3]: a colour of its own for each class, black where there is none (-1)."""
    labels = classes.cpu().numpy()
    table = np.zeros((max(int(labels.max()), 0) + 2, 3), np.uint8)
    for label in range(len(table) - 1):
        hue = label * 0.618034 % 1.0  # the golden ratio keeps neighbours apart
        table[label] = [round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.65, 0.95)]
    picture: np.ndarray = table[np.where(labels < 0, len(table) - 1, labels)]
    return picture


def _row(tiles: list[np.ndarray], bar: tuple[int, int, int]) -> np.ndarray:
    height = tiles[0].shape[0]
    parts = [np.full((height, 4, 3), bar, np.uint8)]
    for tile in tiles:
        parts += [np.full((height, GAP, 3), PADDING, np.uint8), tile]
    row = np.concatenate(parts, axis=1)
    return np.concatenate([row, np.full((GAP, row.shape[1], 3), PADDING, np.uint8)])


def hard_negatives(
    shown: Shown, view_name: str, tokens: Callable[[Tensor], list[str]], count: int = 8
) -> np.ndarray:
    """Returns one row a pair: its image, the image drawn for its text, its text and the one drawn.

    A negative that ITM saw through is green, one that it took for a match red; it stands so beside the image
    (bar on the left: the negative image) and in the text. Pairs whose negatives lie on another rank are left
    out.

    Args:
        shown: a micro-batch with ITM's predictions and the pairs that it drew.
        view_name: the view that ITM reads.
        tokens: ids -> words.
        count: pairs shown at most.

    Returns:
        uint8 [rows, columns, 3].
    """
    view, predictions = with_fetched(shown.prepared.views[view_name]), shown.predictions["itm"].tolist()
    pairs, drawn = view.pairs.tolist(), shown.drawn["itm"].tolist()
    taken = [MATCHED if kind == 0 else SWAPPED for kind in predictions[-len(drawn) :]]
    rows: list[np.ndarray] = []
    for place, (image, text) in enumerate(pairs):
        other_text, other_image = drawn[place][1], drawn[len(pairs) + place][0]
        if other_text >= len(view.text_ids) or other_image >= len(view.images) or len(rows) == count:
            continue
        tiles = [to_pixels(view.images[image]), to_pixels(view.images[other_image])]
        lines = [
            (caption(view, text, tokens), (0, 0, 0)),
            (caption(view, other_text, tokens), taken[place]),
        ]
        rows.append(_row([*tiles, _panel(lines, tiles[0].shape[0])], taken[len(pairs) + place]))
    return np.concatenate(rows) if rows else np.full((GAP, PANEL, 3), PADDING, np.uint8)


def caption(view: Batch, row: int, tokens: Callable[[Tensor], list[str]]) -> str:
    """Returns a text of a batch as one line, its pieces joined, without special tokens."""
    words = tokens(view.text_ids[row][view.text_mask[row] & ~view.special_mask[row]])
    if any(word.startswith(SPACE) for word in words):
        return "".join(words).replace(SPACE, " ").strip()
    return " ".join(words).replace(" ##", "")


def _panel(texts: list[tuple[str, tuple[int, int, int]]], height: int) -> np.ndarray:
    """Returns uint8 [height, PANEL, 3] with the texts one below the other, each in its colour."""
    picture = Image.new("RGB", (PANEL, height), PADDING)
    draw, top = ImageDraw.Draw(picture), 2
    for text, colour in texts:
        for line in textwrap.wrap(text, LETTERS):
            draw.text((4, top), line, fill=colour, font=ImageFont.load_default(11))
            top += LINE
        top += LINE // 2
    return np.asarray(picture)


def masked_captions(
    shown: Shown, view_name: str, tokens: Callable[[Tensor], list[str]], count: int = 12
) -> str:
    """Returns captions as a Markdown list, MLM's guesses at the masked words beside the truth.

    Args:
        shown: a micro-batch with MLM's predictions.
        view_name: the view that MLM masks.
        tokens: ids -> words.
        count: captions with a masked word shown at most.
    """
    targets: Any = shown.prepared.targets["mlm"]
    view = shown.prepared.views[view_name]
    length = view.text_ids.shape[1]
    asked: dict[int, dict[int, tuple[str, str]]] = {}
    real = (targets.weight > 0).tolist()
    rows = zip(
        targets.positions.tolist(),
        tokens(targets.labels),
        tokens(shown.predictions["mlm"]),
        real,
        strict=True,
    )
    for position, truth, guess, counts in rows:
        if counts:
            asked.setdefault(position // length, {})[position % length] = (truth, guess)
    lines = []
    for row in sorted(asked)[:count]:
        words = tokens(view.text_ids[row][view.text_mask[row]])
        lines.append(f"* {masked_words(words, asked[row])}")
    return "\n".join(lines)


def masked_words(words: list[str], asked: dict[int, tuple[str, str]]) -> str:
    """Returns a caption as Markdown: a masked word bold, with the model's guess struck out where it is wrong.

    Args:
        words: the text as the model sees it, [CLS] and [SEP] included.
        asked: position -> (true word, likeliest word by the model).
    """
    out = []
    for position, word in enumerate(words):
        truth, guess = asked.get(position, (word, word))
        if position not in asked:
            out.append(word)
        else:
            out.append(f"**{truth}**" if truth == guess else f"~~{guess}~~ **{truth}**")
    return " ".join(word.replace(SPACE, "") for word in out if word not in ENDS)
