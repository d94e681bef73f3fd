import numpy as np
import pytest
import torch

from dsvlp import recipe
from dsvlp.data.frames import STRIDE, Framing
from tests.batches import make_pixelbert_recipe, make_recipe

R50, X152, SQUARE = Framing(800, 1333), Framing(600, 1000), Framing(96)


def frame(framing: Framing, width: int, height: int) -> tuple[int, int]:
    """Returns (width, height) of the frame of one image."""
    (found,) = framing.frames(np.array([[height, width]])).tolist()
    return found[1], found[0]


def cells(side: int) -> int:
    """Pooling's own arithmetic: the CNN rounds up, the 2x2 pool down (specification P3)."""
    return -(-side // 32) // 2


@pytest.mark.parametrize(
    ("framing", "size", "expected"),
    [
        (R50, (640, 480), (1066, 800)),
        (R50, (480, 640), (800, 1066)),
        (R50, (640, 427), (1199, 800)),
        (R50, (500, 500), (800, 800)),
        (R50, (640, 384), (1333, 800)),  # 5:3 is the limit
        (R50, (1920, 1080), (1333, 749)),
        (R50, (1080, 1920), (749, 1333)),
        (R50, (40, 30), (1066, 800)),  # enlarged
        (R50, (1, 1), (800, 800)),
        (R50, (1000, 10), (1333, 64)),  # a whole cell at least
        (R50, (10, 1000), (64, 1333)),
        (X152, (640, 480), (800, 600)),
        (X152, (1280, 720), (1000, 562)),
        (SQUARE, (640, 480), (96, 96)),
    ],
)
def test_known_images_get_known_frames(framing, size, expected):
    assert frame(framing, *size) == expected


def test_frames_keep_the_aspect_within_a_pixel_and_both_limits():
    sizes = np.random.default_rng(0).integers(200, 2000, (2000, 2))
    frames = R50.frames(sizes)
    shorter, longer = frames.min(1), frames.max(1)
    assert ((shorter == 800) | (longer == 1333)).all() and (shorter <= 800).all() and (longer <= 1333).all()
    exact = sizes * (shorter / sizes.min(1))[:, None]
    assert (np.abs(exact - frames).max(1) <= np.maximum(1, sizes.max(1) / sizes.min(1))).all()
    assert ((frames[:, 0] > frames[:, 1]) == (sizes[:, 0] > sizes[:, 1]))[sizes[:, 0] != sizes[:, 1]].all()


@pytest.mark.parametrize(
    ("framing", "size", "expected"),
    [(R50, (800, 1066), 204), (R50, (800, 1333), 252), (X152, (600, 1000), 144)],
)
def test_an_images_canvas_has_the_cells_of_the_specification(framing, size, expected):
    height, width = framing.canvas(np.array([size]))
    assert cells(height) * cells(width) == expected == cells(size[0]) * cells(size[1])


def test_centres_of_picture_are_an_images_own_cells_in_any_canvas():
    for side in range(33, 1400):
        for canvas in (-(-side // STRIDE) * STRIDE, 1408):
            canvas = max(canvas, 64)
            centres = np.arange(cells(canvas)) * 64 + 32
            assert (centres < side).sum() == cells(side)


def test_a_canvas_holds_all_frames_and_is_whole_strides():
    frames = R50.frames(np.random.default_rng(1).integers(10, 900, (50, 2)))
    for some in (frames, frames[:1], frames[7:9]):
        canvas = R50.canvas(some)
        assert (np.array(canvas) >= some.max(0)).all() and (np.array(canvas) - some.max(0) < STRIDE).all()
        assert canvas[0] % STRIDE == canvas[1] % STRIDE == 0
    assert Framing(33, 40).canvas(np.array([[33, 40]])) == (64, 64)  # never less than a cell


def test_masks_are_true_where_there_is_picture():
    frames, canvas = [(70, 64), (64, 96), (96, 33)], (96, 96)
    mask = R50.mask(frames, canvas)
    slow = torch.zeros(3, *canvas, dtype=torch.bool)
    for image, (height, width) in enumerate(frames):
        for line in range(height):
            for column in range(width):
                slow[image, line, column] = True
    assert torch.equal(mask, slow)
    assert SQUARE.mask([(96, 96)], (96, 96)) is None


def test_a_frame_is_made_smaller_only_where_it_does_not_fit_and_keeps_its_aspect():
    assert R50.inside((800, 1066), (800, 1088)) == (800, 1066)
    assert R50.inside((1066, 800), (800, 1088)) == (800, 600)
    assert R50.inside((800, 1333), (1344, 832)) == (499, 832)
    draws = np.random.default_rng(2).integers(64, 1333, (500, 4))
    for height, width, most_height, most_width in draws.tolist():
        found = R50.inside((height, width), (most_height, most_width))
        assert 0 < found[0] <= most_height and 0 < found[1] <= most_width
        if found != (height, width):
            assert found[0] == most_height or found[1] == most_width
            assert abs(found[0] * width - found[1] * height) <= max(height, width)


def test_a_recipe_says_how_large_images_become():
    assert Framing.of(make_recipe()) == Framing(32)
    shown = make_pixelbert_recipe("model.longest_side=200")
    assert Framing.of(shown) == Framing(128, 200)
    shipped = Framing.of(recipe.load("pretrain_pixelbert"))
    assert shipped.side == 800 and shipped.longest in (None, 1333)
    assert Framing.of(recipe.load("pretrain_fiber")) == Framing(384, filter="bicubic")
    assert Framing.of(recipe.load("pretrain_meter")) == Framing(384, filter="bicubic")
