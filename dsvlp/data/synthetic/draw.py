"""A scene's picture, segmentation map and boxes.

Legend: S the picture's side in pixels, K shapes. Shapes are drawn with supersampling inside their own
square, so that a small star keeps its points at 96 pixels.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from dsvlp.data.synthetic.draws import Draws, noise
from dsvlp.data.synthetic.world import COLOURS, Scene, Shape, World

_SUPERSAMPLING = 4
_TONES = (65, 205)  # grey levels of the background
_NOISE = 12  # grey levels from the darkest to the brightest speck


@dataclass(frozen=True)
class Picture:
    """A drawn scene.

    Attributes:
        pixels: uint8 [S, S, 3].
        labels: uint8 [S, S], stored ids of `world.MAP_LABELS`.
        boxes_xyxy: float32 [K, 4], pixels; the tight box of each shape's part of `labels`.
    """

    pixels: np.ndarray
    labels: np.ndarray
    boxes_xyxy: np.ndarray

    def jpeg(self) -> bytes:
        """Returns the picture as JPEG, quality 95, 4:4:4: subsampling would blur small coloured shapes."""
        out = io.BytesIO()
        Image.fromarray(self.pixels).save(out, "JPEG", quality=95, subsampling=0)
        return out.getvalue()

    def png(self) -> bytes:
        """Returns the map as a grey PNG of class ids."""
        out = io.BytesIO()
        Image.fromarray(self.labels).save(out, "PNG")
        return out.getvalue()


def draw(world: World, scene: Scene) -> Picture:
    """Returns the scene drawn on a nearly plain background with mild noise."""
    draws = Draws(world.key(scene.index, "picture"))
    pixels = _background(world.image_size, draws)
    labels = np.zeros(pixels.shape[:2], np.uint8)
    boxes = [_paint(shape, pixels, labels, draws) for shape in scene.shapes]
    pixels += noise(world.key(scene.index, "noise"), pixels.shape) * (_NOISE / 255) - _NOISE / 2
    rounded = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return Picture(rounded, labels, np.array(boxes, np.float32).reshape(-1, 4))


def _background(side: int, draws: Draws) -> np.ndarray:
    """Returns float32 [S, S, 3]: a tinted grey with a slight slope."""
    tone = draws.uniform(*_TONES)
    tint = np.array([tone + draws.uniform(-8, 8) for _ in range(3)], np.float32)
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    slope = draws.uniform(-10, 10) * ramp[:, None] + draws.uniform(-10, 10) * ramp[None, :]
    return slope[..., None] + tint


def _paint(shape: Shape, pixels: np.ndarray, labels: np.ndarray, draws: Draws) -> tuple[int, int, int, int]:
    """Paints a shape into `pixels` and `labels`; returns its box (x0, y0, x1, y1)."""
    side = labels.shape[0]
    left = math.floor((shape.x - shape.radius) * side)
    top = math.floor((shape.y - shape.radius) * side)
    extent = math.ceil(2 * shape.radius * side) + 1
    cover = _cover(shape, side, left, top, extent)
    window = (slice(top, top + extent), slice(left, left + extent))
    colour = np.array([level + draws.uniform(-12, 12) for level in COLOURS[shape.colour]], np.float32)
    share = cover[..., None].astype(np.float32) / 255
    pixels[window] += share * (colour - pixels[window])
    inside = share[..., 0] >= 0.5
    labels[window][inside] = shape.label + 1
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return (
        left + int(columns[0]),
        top + int(rows[0]),
        left + int(columns[-1]) + 1,
        top + int(rows[-1]) + 1,
    )


def _cover(shape: Shape, side: int, left: int, top: int, extent: int) -> np.ndarray:
    """Returns uint8 [extent, extent]: how much of each pixel of the window the shape covers, of 255."""
    scale = _SUPERSAMPLING
    mask = Image.new("L", (extent * scale, extent * scale))
    pen = ImageDraw.Draw(mask)
    centre_x, centre_y = (shape.x * side - left) * scale, (shape.y * side - top) * scale
    radius = shape.radius * side * scale
    if shape.kind == "circle":
        pen.ellipse((centre_x - radius, centre_y - radius, centre_x + radius, centre_y + radius), fill=255)
    else:
        sine, cosine = math.sin(shape.angle) * radius, math.cos(shape.angle) * radius
        turned = [(x * cosine - y * sine, x * sine + y * cosine) for x, y in _CORNERS[shape.kind]]
        pen.polygon([(centre_x + x, centre_y + y) for x, y in turned], fill=255)
    return np.asarray(mask.reduce(scale))


def _star() -> list[tuple[float, float]]:
    turns = [(-math.pi / 2 + k * math.pi / 5, 1.0 if k % 2 == 0 else 0.42) for k in range(10)]
    return [(length * math.cos(turn), length * math.sin(turn)) for turn, length in turns]


_ARM = 0.3  # half the width of a cross's arm
_END = math.sqrt(1 - _ARM**2)
_CORNERS: dict[str, list[tuple[float, float]]] = {  # y down; no edge beyond 1, turned or not
    "square": [(-0.76, -0.76), (0.76, -0.76), (0.76, 0.76), (-0.76, 0.76)],
    "triangle": [(0, -1), (0.866, 0.5), (-0.866, 0.5)],
    "diamond": [(0, -1), (0.6, 0), (0, 1), (-0.6, 0)],
    "star": _star(),
    "cross": [
        (-_ARM, -_END), (_ARM, -_END), (_ARM, -_ARM), (_END, -_ARM), (_END, _ARM), (_ARM, _ARM),
        (_ARM, _END), (-_ARM, _END), (-_ARM, _ARM), (-_END, _ARM), (-_END, -_ARM), (-_ARM, -_ARM),
    ],
}  # fmt: skip
