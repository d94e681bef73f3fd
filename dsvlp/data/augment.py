"""SVL's augmentation: random resize and crop, and a flip that the captions must allow, which all systems use.

"Random resize 0.8-1.2, then crop": the image becomes a square of side s x size; for s >= 1 a window
of `size` is cut out of it, for s < 1 it is placed on a canvas of the mean colour, both at random.
Cropping and resizing are exchanged: the window is cut in the source, in whole source pixels, and only
that is resized. So boxes and maps move along exactly, and no pixel is computed that is then thrown away.

Where images keep their aspect there is no crop: the whole image fills its frame (see `frames`), and the frame
alone is mirrored, so that the padding of a batch stays to the right of it and below.

Legend: I images, K boxes, S the side of a square output, H x W any output, h x w the source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsvlp.seed import uniform
from dsvlp.types import IMAGENET_DEVIATION, IMAGENET_MEAN, Filter

# SVL, description-aware flip: words that a mirror image would make wrong.
DIRECTION_WORDS = [
    *("left", "right", "leftmost", "rightmost", "left-hand", "right-hand", "east", "west"),
    *("clockwise", "counterclockwise", "anticlockwise"),
]
TEXT_WORDS = ["sign", "letters", "word", "number", "reads", "says", "logo", "clock", "license plate"]

_SCALE = torch.tensor([1 / (255 * deviation) for deviation in IMAGENET_DEVIATION])[:, None, None]
_SHIFT = torch.tensor(
    [-mean / deviation for mean, deviation in zip(IMAGENET_MEAN, IMAGENET_DEVIATION, strict=True)]
)[:, None, None]


@dataclass(frozen=True)
class Crop:
    """Where an output takes its pixels: source[top:, left:] of `height` x `width` -> target.

    Attributes:
        top, left, height, width: the window in the source, whole pixels inside it.
        target_top, target_left, target_height, target_width: the rectangle of the frame that the
            window fills, before the flip; the rest is padding.
        frame: height and width of the image's own part of the output, from its upper left corner.
        flip: the whole frame is mirrored, left to right.
        filter: what resizes the window.
    """

    top: int
    left: int
    height: int
    width: int
    target_top: int
    target_left: int
    target_height: int
    target_width: int
    frame: tuple[int, int]
    flip: bool = False
    filter: Filter = "bilinear"

    def columns(self) -> slice:
        """Returns the output's columns that hold picture, after the flip."""
        begin = self.frame[1] - self.target_left - self.target_width if self.flip else self.target_left
        return slice(begin, begin + self.target_width)

    def lines(self) -> slice:
        """Returns the output's lines that hold picture."""
        return slice(self.target_top, self.target_top + self.target_height)

    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source's lines and columns under the centres of the pixels that hold picture.

        The columns are those of the output from left to right, so they fall where it is mirrored.
        """
        lines = self.top + ((np.arange(self.target_height) + 0.5) * self.height / self.target_height).astype(
            int
        )
        columns = self.left + ((np.arange(self.target_width) + 0.5) * self.width / self.target_width).astype(
            int
        )
        return lines, columns[::-1] if self.flip else columns


def forbids_flip(caption: str, text_words: bool) -> bool:
    """Returns whether a caption has a word that a mirror image would make wrong (whole tokens only).

    Args:
        caption: the true caption of the image.
        text_words: whether words about writing count too.
    """
    return (_TEXT_PATTERN if text_words else _DIRECTION_PATTERN).search(caption.lower()) is not None


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    choices = "|".join(r"\s+".join(map(re.escape, word.split())) for word in words)
    return re.compile(rf"(?<![a-z0-9])(?:{choices})(?![a-z0-9])")


_DIRECTION_PATTERN = _pattern(DIRECTION_WORDS)
_TEXT_PATTERN = _pattern([*DIRECTION_WORDS, *TEXT_WORDS])


def whole(
    height: int, width: int, frame: tuple[int, int], flip: bool = False, filter: Filter = "bilinear"
) -> Crop:
    """Returns the plain resize, evaluation's: the whole image fills its frame (height, width)."""
    return Crop(0, 0, height, width, 0, 0, *frame, frame, flip, filter)


def draw_flips(keys: np.ndarray, may_flip: np.ndarray) -> np.ndarray:
    """Returns bool [I]: half of the images that may be mirrored, drawn from keys int64 [I]."""
    return may_flip & (uniform(keys, "augment", 4)[:, 3] < 0.5)


def draw_crops(
    keys: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    may_flip: np.ndarray,
    size: int,
    scale: tuple[float, float],
    filter: Filter = "bilinear",
) -> list[Crop]:
    """Returns a training crop for each image, drawn from its key alone.

    Args:
        keys: int64 [I], the batch's image keys.
        heights, widths: int [I], pixels of the sources.
        may_flip: bool [I], what recipe and captions allow; half of those are flipped.
        size: side of the output, pixels.
        scale: smallest and largest s.
        filter: what resizes the windows.
    """
    draws = uniform(keys, "augment", 4).astype(np.float64)  # [I, 4]
    scales = scale[0] + (scale[1] - scale[0]) * draws[:, 0]
    flips = draw_flips(keys, may_flip)
    return [
        _crop(int(height), int(width), size, float(s), draw, bool(flip), filter)
        for height, width, s, draw, flip in zip(heights, widths, scales, draws[:, 1:3], flips, strict=True)
    ]


def _crop(
    height: int, width: int, size: int, scale: float, draw: np.ndarray, flip: bool, filter: Filter
) -> Crop:
    if scale < 1:
        side = max(1, round(scale * size))
        top, left = (int(u * (size - side + 1)) for u in draw)
        return Crop(0, 0, height, width, top, left, side, side, (size, size), flip, filter)
    h, w = max(1, round(height / scale)), max(1, round(width / scale))
    top, left = int(draw[0] * (height - h + 1)), int(draw[1] * (width - w + 1))
    return Crop(top, left, h, w, 0, 0, size, size, (size, size), flip, filter)


def place_image(pixels: np.ndarray, crop: Crop, source: tuple[int, int], out: Tensor) -> None:
    """Writes the cropped, resized (antialiased), flipped and normalised image into `out`.

    Args:
        pixels: uint8 [H, W, 3], the source or the source decoded at a fraction of its size.
        crop: the crop, in pixels of the source.
        source: (height, width) of the source.
        out: float32 [3, H, W], overwritten; 0, the normalised mean, where there is padding.
    """
    lines, columns = scaled_window(crop, source, (pixels.shape[0], pixels.shape[1]))
    window = torch.from_numpy(pixels[lines, columns]).permute(2, 0, 1)[None]  # [1, 3, h, w], channels last
    target = (crop.target_height, crop.target_width)
    resized = resize(window, target, crop.filter)
    if crop.flip:
        resized = resized.flip(3)
    if target != out.shape[1:]:
        out.zero_()
    place = out[:, crop.lines(), crop.columns()]
    torch.mul(resized[0], _SCALE, out=place).add_(_SHIFT)


def resize(window: Tensor, target: tuple[int, int], filter: Filter) -> Tensor:
    """Returns windows [I, 3, h, w], uint8 or float of 0 to 255, as [I, 3, *target] of the same range.

    A bicubic filter overshoots at edges. 8 bits saturate after each direction, as Pillow's; floats too.
    """
    if window.shape[2:] == target:
        return window
    if filter == "bilinear" or not window.is_floating_point():
        return F.interpolate(window, target, mode=filter, antialias=True, align_corners=False)
    for side in ((window.shape[2], target[1]), target):
        window = F.interpolate(window, side, mode=filter, antialias=True, align_corners=False).clamp_(0, 255)
    return window


def scaled_window(crop: Crop, source: tuple[int, int], decoded: tuple[int, int]) -> tuple[slice, slice]:
    """Returns the crop's lines and columns in the decoded image, which may be smaller than the source."""
    window = []
    for begin, extent, full, real in (
        (crop.top, crop.height, source[0], decoded[0]),
        (crop.left, crop.width, source[1], decoded[1]),
    ):
        first = round(begin * real / full)
        window.append(slice(first, max(first + 1, round((begin + extent) * real / full))))
    return window[0], window[1]


def place_map(classes: np.ndarray, crop: Crop, shape: tuple[int, int]) -> np.ndarray:
    """Returns the map under the output's pixel centres, int64 [H, W]; -1 in the padding.

    Args:
        classes: int [h, w] of the source, contiguous class ids.
        crop: the crop.
        shape: of the output.
    """
    out = np.full(shape, -1, np.int64)
    lines, columns = crop.nearest()
    out[crop.lines(), crop.columns()] = classes[lines[:, None], columns]
    return out


def place_boxes(boxes_xyxy: np.ndarray, crop: Crop) -> tuple[np.ndarray, np.ndarray]:
    """Returns the boxes in the frame, and how much of each is left.

    Args:
        boxes_xyxy: float32 [K, 4], pixels of the source.
        crop: the crop.

    Returns:
        (cxcywh float32 [K, 4] relative to the frame, clipped; share of the area inside [K]).
    """
    height, width = crop.frame
    stretch = np.array([crop.target_width / crop.width, crop.target_height / crop.height] * 2)
    origin = np.array([crop.left, crop.top] * 2)
    start = np.array([crop.target_left, crop.target_top] * 2)
    moved = (boxes_xyxy - origin) * stretch + start  # [K, 4], pixels of the frame
    end = start + np.array([crop.target_width, crop.target_height] * 2)
    clipped = np.clip(moved, start, end)
    share = _area(clipped) / np.maximum(_area(moved), 1e-9)
    if crop.flip:
        clipped = np.stack([width - clipped[:, 2], clipped[:, 1], width - clipped[:, 0], clipped[:, 3]], 1)
    centre, extent = (clipped[:, :2] + clipped[:, 2:]) / 2, clipped[:, 2:] - clipped[:, :2]
    return (np.concatenate([centre, extent], 1) / [width, height, width, height]).astype(np.float32), share


def _area(boxes_xyxy: np.ndarray) -> np.ndarray:
    return (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])
