from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dsvlp.data.augment import (
    Crop,
    draw_crops,
    forbids_flip,
    place_boxes,
    place_image,
    place_map,
    whole,
)
from dsvlp.types import IMAGENET_DEVIATION, IMAGENET_MEAN

S = 32


def drawn(count: int, height: int = 45, width: int = 60) -> list[Crop]:
    sides = np.full(count, height), np.full(count, width)
    return draw_crops(np.arange(count) * 7919, *sides, np.ones(count, bool), S, (0.8, 1.2))


def source_of(crop: Crop, line: int, column: int) -> tuple[float, float] | None:
    """Slow reference: where (y, x) in the source an output pixel's centre lies, None in the padding."""
    if crop.flip:
        column = S - 1 - column
    y, x = line + 0.5 - crop.target_top, column + 0.5 - crop.target_left
    if not (0 <= y < crop.target_height and 0 <= x < crop.target_width):
        return None
    return crop.top + y * crop.height / crop.target_height, crop.left + x * crop.width / crop.target_width


@pytest.mark.parametrize(
    ("caption", "forbidden"),
    [
        ("a bright red bus", False),
        ("a copyright sign on the leftover wall", False),
        ("a cat on the left.", True),
        ("LEFT, of the tree", True),
        ("his left-hand glove", True),
        ("the rightmost cup", True),
        ("turning anticlockwise", True),
        ("an east-facing window", True),
        ("Eastern food", False),
        ("a clock on a tower", False),
    ],
)
def test_only_whole_direction_words_forbid_a_flip(caption, forbidden):
    assert forbids_flip(caption, text_words=False) == forbidden


def test_words_about_writing_forbid_a_flip_where_asked():
    for caption in ("a stop sign", "a License  Plate", "it reads stop", "a clock"):
        assert forbids_flip(caption, text_words=True) and not forbids_flip(caption, text_words=False)
    assert not forbids_flip("a plate of food by a designer", text_words=True)


def test_crops_have_the_drawn_sizes_and_stay_inside():
    crops = drawn(2000)
    for crop in crops:
        assert 0 <= crop.top <= 45 - crop.height and 0 <= crop.left <= 60 - crop.width
        assert (
            0 <= crop.target_top <= S - crop.target_height and 0 <= crop.target_left <= S - crop.target_width
        )
        assert (crop.height, crop.width) == (45, 60) or (crop.target_height, crop.target_width) == (S, S)
    assert 0.47 < np.mean([crop.flip for crop in crops]) < 0.53
    sides = [crop.target_height * 45 / crop.height / S for crop in crops]  # the drawn s
    assert abs(np.mean(sides) - 1) < 0.01 and min(sides) < 0.82 and max(sides) > 1.18
    assert len({crop.top for crop in crops if crop.height < 40}) > 5
    assert len({crop.target_left for crop in crops if crop.target_width < 28}) > 3


def test_a_crop_depends_on_its_key_alone():
    assert (
        drawn(10)[3]
        == draw_crops(np.array([3 * 7919]), np.array([45]), np.array([60]), np.array([True]), S, (0.8, 1.2))[
            0
        ]
    )


def test_what_may_not_flip_is_never_flipped():
    sides = np.full(100, 45), np.full(100, 60)
    crops = draw_crops(np.arange(100), *sides, np.zeros(100, bool), S, (0.8, 1.2))
    assert not any(crop.flip for crop in crops)


def test_maps_move_as_the_slow_reference_says():
    classes = np.random.default_rng(0).integers(0, 5, (45, 60))
    for crop in [*drawn(12), whole(45, 60, (S, S))]:
        placed = place_map(classes, crop, (S, S))
        for line in range(S):
            for column in range(S):
                point = source_of(crop, line, column)
                expected = -1 if point is None else classes[int(point[0]), int(point[1])]
                assert placed[line, column] == expected


def test_nearest_takes_cell_centres():
    checker = np.indices((64, 64)).sum(0) % 2
    checker[16::32, 16::32] = 7  # the centre of each 32-pixel cell, and nothing at its corner
    assert (place_map(checker, whole(64, 64, (2, 2)), (2, 2)) == 7).all()


def test_boxes_move_with_the_map():
    for crop in drawn(40):
        box = np.array([[10, 12, 41, 37]], np.float32)
        inside = np.zeros((45, 60), int)
        inside[12:37, 10:41] = 1
        placed = place_map(inside, crop, (S, S)) == 1
        (cx, cy, w, h), share = place_boxes(box, crop)[0][0] * S, place_boxes(box, crop)[1][0]
        assert 0 < share <= 1
        lines, columns = np.flatnonzero(placed.any(1)), np.flatnonzero(placed.any(0))
        assert abs(cy - h / 2 - lines[0]) <= 1 and abs(cy + h / 2 - lines[-1] - 1) <= 1
        assert abs(cx - w / 2 - columns[0]) <= 1 and abs(cx + w / 2 - columns[-1] - 1) <= 1


def test_the_share_of_a_box_that_is_left_is_its_area_inside_the_crop():
    crop = Crop(0, 10, 20, 20, 0, 0, S, S, (S, S))
    boxes = np.array([[0, 0, 20, 20], [12, 2, 18, 8], [0, 0, 5, 5]], np.float32)
    cxcywh, share = place_boxes(boxes, crop)
    assert share.tolist() == pytest.approx([0.5, 1.0, 0.0])
    assert cxcywh[0].tolist() == pytest.approx([0.25, 0.5, 0.5, 1.0])
    assert cxcywh[2, 2] == 0


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_images_equal_pillows_resize_of_the_window(filter):
    pixels = np.array(
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
            (60, 45)
        )
    )
    for drawn_crop in [*drawn(12), whole(45, 60, (S, S))]:
        crop = replace(drawn_crop, filter=filter)
        out = torch.full((3, S, S), torch.nan)
        place_image(pixels, crop, (45, 60), out)
        window = Image.fromarray(
            pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        )
        resized = np.asarray(
            window.resize((crop.target_width, crop.target_height), Image.Resampling[filter.upper()])
        )
        expected = np.full((S, S, 3), 255 * np.array(IMAGENET_MEAN))
        expected[crop.lines(), crop.target_left : crop.target_left + crop.target_width] = resized
        if crop.flip:
            expected = expected[:, ::-1]
        shown = (out.permute(1, 2, 0).numpy() * IMAGENET_DEVIATION + IMAGENET_MEAN) * 255
        assert np.abs(shown - expected).max() < 2.5  # both round to 8 bits once or twice


def test_padding_is_the_mean_colour():
    crop = next(crop for crop in drawn(50) if crop.target_height < S - 2)
    out = torch.full((3, S, S), torch.nan)
    place_image(np.full((45, 60, 3), 255, np.uint8), crop, (45, 60), out)
    filled = torch.zeros(S, S, dtype=torch.bool)
    filled[crop.lines(), crop.columns()] = True
    assert (out[:, ~filled] == 0).all() and (out[:, filled] > 2).all()


def test_a_source_decoded_at_half_its_size_gives_the_same_picture():
    pixels = np.asarray(
        Image.fromarray(np.random.default_rng(2).integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
            (320, 240)
        )
    )
    half = np.asarray(Image.fromarray(pixels).resize((160, 120), Image.Resampling.BOX))
    crop = Crop(40, 60, 180, 200, 0, 0, S, S, (S, S), flip=True)
    full, reduced = torch.empty(3, S, S), torch.empty(3, S, S)
    place_image(pixels, crop, (240, 320), full)
    place_image(half, crop, (240, 320), reduced)
    assert (full - reduced).abs().max() < 0.05
