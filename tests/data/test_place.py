from dataclasses import replace

import numpy as np
import pytest
import torch

from dsvlp.data.augment import Crop, draw_crops, place_image, place_map, whole
from dsvlp.data.lane import Lane
from dsvlp.data.place import place_images, place_maps
from dsvlp.types import IMAGENET_DEVIATION

S = 32
CANVAS = (S, S)
CPU = Lane(torch.device("cpu"))
SIDES = [(45, 60), (64, 40), (32, 32), (90, 33)]
# The CPU's fast resize rounds to 8 bits after each direction, and its weights to 15 bits.
LEVELS = 1.1
PLACE = ("top", "left", "height", "width")


def pictures(count: int) -> list[np.ndarray]:
    draws = np.random.default_rng(count)
    return [draws.integers(0, 256, (*SIDES[n % 4], 3), dtype=np.uint8) for n in range(count)]


def drawn(count: int, scale: tuple[float, float] = (0.7, 1.4)) -> list[Crop]:
    sides = [np.array([SIDES[n % 4][axis] for n in range(count)]) for axis in (0, 1)]
    crops = draw_crops(np.arange(count) * 7919, *sides, np.ones(count, bool), S, scale)
    assert {crop.flip for crop in crops} == {False, True} or count < 8
    return crops


def one_by_one(sources: list[np.ndarray], crops: list[Crop], full: list[tuple[int, int]]) -> torch.Tensor:
    out = torch.full((len(crops), 3, S, S), torch.nan)
    for pixels, crop, source, place in zip(sources, crops, full, out, strict=True):
        place_image(pixels, crop, source, place)
    return out


def levels(difference: torch.Tensor) -> float:
    deviation = torch.tensor(IMAGENET_DEVIATION)[:, None, None]
    return float((difference.abs() * deviation * 255).max())


def on_device(pixels: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(each.transpose(2, 0, 1)) for each in pixels]


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("scale", [(0.7, 1.4), (0.5, 0.9), (1.1, 1.5)], ids=["both", "padded", "cut"])
def test_a_batch_equals_images_placed_one_by_one(scale, filter):
    sources, crops = pictures(24), [replace(crop, filter=filter) for crop in drawn(24, scale)]
    full = [each.shape[:2] for each in sources]
    batch = place_images(on_device(sources), crops, full, CANVAS, CPU)
    expected = one_by_one(sources, crops, full)
    assert levels(batch - expected) < LEVELS
    for image, crop in zip(batch, crops, strict=True):
        padding = torch.ones(S, S, dtype=torch.bool)
        padding[crop.lines(), crop.columns()] = False
        assert (image[:, padding] == 0).all()


def test_where_nothing_is_resized_the_pixels_are_the_same():
    sources = [np.random.default_rng(1).integers(0, 256, (S, S, 3), dtype=np.uint8)] * 2
    crops = [whole(S, S, CANVAS), whole(S, S, CANVAS, flip=True)]
    batch = place_images(on_device(sources), crops, [(S, S)] * 2, CANVAS, CPU)
    assert (batch - one_by_one(sources, crops, [(S, S)] * 2)).abs().max() < 1e-6
    assert torch.equal(batch[1], batch[0].flip(2))


def test_a_source_decoded_at_a_fraction_fills_the_same_place():
    sources, crops = pictures(8), drawn(8)
    full = [(2 * each.shape[0], 2 * each.shape[1]) for each in sources]
    doubled = [replace(c, **{side: 2 * getattr(c, side) for side in PLACE}) for c in crops]
    batch = place_images(on_device(sources), doubled, full, CANVAS, CPU)
    assert torch.equal(
        batch, place_images(on_device(sources), crops, [e.shape[:2] for e in sources], CANVAS, CPU)
    )


def test_an_image_is_the_same_in_any_company():
    sources, crops = on_device(pictures(12)), drawn(12)
    full = [(each.shape[1], each.shape[2]) for each in sources]
    batch = place_images(sources, crops, full, CANVAS, CPU)
    for n in range(12):
        alone = place_images(sources[n : n + 1], crops[n : n + 1], full[n : n + 1], CANVAS, CPU)
        assert torch.equal(alone[0], batch[n])


def test_maps_equal_those_placed_one_by_one():
    draws = np.random.default_rng(3)
    maps = [draws.integers(-1, 7, SIDES[n % 4]).astype(np.int32) for n in range(24)]
    for crops in (drawn(24), [whole(*each.shape, CANVAS) for each in maps]):
        placed = place_maps(maps, crops, CANVAS, CPU)
        assert placed.dtype == torch.int64
        for classes, crop, one in zip(maps, crops, placed, strict=True):
            assert np.array_equal(one.numpy(), place_map(classes, crop, CANVAS))
