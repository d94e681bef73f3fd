from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch

from dsvlp.engine import pictures
from tests.batches import make_batch, make_fetched


def test_normalised_images_come_back_as_the_pixels_they_were():
    pixels = torch.randint(0, 256, (3, 5, 7), generator=torch.Generator().manual_seed(0))
    mean, deviation = (
        torch.tensor(v).view(3, 1, 1) for v in (pictures.IMAGENET_MEAN, pictures.IMAGENET_DEVIATION)
    )
    back = pictures.to_pixels((pixels / 255 - mean) / deviation)
    assert np.array_equal(back, pixels.permute(1, 2, 0).numpy())


def test_every_class_has_its_own_colour_and_no_class_is_black():
    classes = torch.arange(-1, 60).view(1, -1)
    drawn = pictures.colours(classes)[0]
    assert drawn[0].tolist() == [0, 0, 0]
    assert len({tuple(colour) for colour in drawn.tolist()}) == 61


def test_the_grid_shows_what_was_masked_and_which_texts_were_swapped():
    images = torch.zeros(3, 3, 8, 8)
    seen = images.clone()
    seen[1] += 1
    grid = pictures.input_grid(
        images, seen, torch.tensor([True, False, True]), torch.zeros(3, 8, 8).long(), 2
    )
    assert grid.shape == (2 * (8 + pictures.GAP), 4 + 3 * (8 + pictures.GAP), 3)
    assert grid.dtype == np.uint8
    assert [tuple(grid[row, 0]) for row in (0, 10)] == [pictures.MATCHED, pictures.SWAPPED]
    first, second = 4 + pictures.GAP, 4 + 2 * pictures.GAP + 8
    assert np.array_equal(grid[0, first], grid[0, second])
    assert not np.array_equal(grid[10, first], grid[10, second])


def test_masked_words_stand_beside_the_models_guesses():
    names = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "star"]
    view = SimpleNamespace(
        text_ids=torch.tensor([[1, 4, 3, 7, 2, 0], [1, 4, 5, 3, 2, 0]]),
        text_mask=torch.tensor([[1, 1, 1, 1, 1, 0]] * 2).bool(),
    )
    targets = SimpleNamespace(
        positions=torch.tensor([2, 9, 0]),
        labels=torch.tensor([5, 7, 0]),
        weight=torch.tensor([1.0, 1.0, 0.0]),
    )
    shown = SimpleNamespace(
        prepared=SimpleNamespace(targets={"mlm": targets}, views={"joint": view}),
        predictions={"mlm": torch.tensor([6, 7, 4])},
    )
    text = pictures.masked_captions(shown, "joint", lambda ids: [names[i] for i in ids])
    assert text == "* a ~~blue~~ **red** star\n* a red **star**"


def negatives(drawn, predictions):
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 40, 40)
    view = SimpleNamespace(
        images=images,
        fetched=None,
        pairs=torch.tensor([[0, 0], [1, 1], [2, 2]]),
        text_ids=torch.tensor([[1, 4, 2], [1, 5, 2], [1, 6, 2]]),
        text_mask=torch.ones(3, 3).bool(),
        special_mask=torch.tensor([[True, False, True]] * 3),
    )
    shown = SimpleNamespace(
        prepared=SimpleNamespace(views={"clean": view}),
        predictions={"itm": torch.tensor([1, 1, 1, *predictions])},
        drawn={"itm": torch.tensor(drawn)},
    )
    asked = []
    names = {4: "red", 5: "blue", 6: "star"}

    def tokens(ids):
        asked.append([names[i] for i in ids.tolist()])
        return asked[-1]

    return pictures.hard_negatives(shown, "clean", tokens), asked, images


def test_a_hard_negative_stands_beside_its_pair_coloured_by_itms_answer():
    drawn = [
        [0, 1],
        [1, 2],
        [2, 0],
        [2, 0],
        [0, 1],
        [1, 2],
    ]  # images with other texts, other images with texts
    grid, asked, images = negatives(drawn, [0, 1, 0, 1, 0, 0])
    height = 40 + pictures.GAP
    assert grid.shape == (3 * height, 4 + 2 * height + pictures.GAP + pictures.PANEL, 3)
    assert asked == [["red"], ["blue"], ["blue"], ["star"], ["star"], ["red"]]
    for row, other in enumerate([2, 0, 1]):
        first, second = 4 + pictures.GAP, 4 + 2 * pictures.GAP + 40
        for column, image in ((first, row), (second, other)):
            assert np.array_equal(grid[row * height, column], pictures.to_pixels(images[image])[0, 0])
    bars = [tuple(grid[row * height, 0]) for row in range(3)]
    assert bars == [pictures.SWAPPED, pictures.MATCHED, pictures.MATCHED]
    panels = [grid[row * height :][:40, -pictures.PANEL :].astype(int) for row in range(3)]
    reddish = [bool((panel[..., 0] - panel[..., 1] > 60).any()) for panel in panels]
    assert reddish == [False, True, False]


def test_negatives_of_other_ranks_are_left_out():
    drawn = [[0, 1], [1, 7], [2, 0], [2, 0], [0, 1], [5, 2]]
    grid, asked, _ = negatives(drawn, [0] * 6)
    assert len(grid) == 40 + pictures.GAP and asked == [["red"], ["blue"]]
    grid, asked, _ = negatives([[0, 9]] * 6, [0] * 6)
    assert grid.size and not asked


def test_the_pieces_of_a_caption_are_joined_as_its_tokenizer_cut_them():
    view = SimpleNamespace(
        text_ids=torch.zeros(1, 5).long(),
        text_mask=torch.ones(1, 5).bool(),
        special_mask=torch.tensor([[True, False, False, False, True]]),
    )
    for pieces in (["tri", "##angle", "here"], ["tri", "angle", "\u0120here"]):
        assert pictures.caption(view, 0, lambda ids, pieces=pieces: pieces[: len(ids)]) == "triangle here"


def test_negatives_that_were_fetched_are_shown():
    fetched = make_fetched(3, image_size=40)
    view = replace(make_batch(3, image_size=40, partners=False), fetched=fetched)
    drawn = [[0, 4], [1, 2], [2, 0], [2, 0], [5, 1], [1, 2]]
    shown = SimpleNamespace(
        prepared=SimpleNamespace(views={"clean": view}),
        predictions={"itm": torch.ones(9)},
        drawn={"itm": torch.tensor(drawn)},
    )
    asked = []
    grid = pictures.hard_negatives(shown, "clean", lambda ids: asked.append(ids.tolist()) or ["word"])
    real = fetched.text_mask[1] & ~fetched.special_mask[1]
    assert asked[1] == fetched.text_ids[1][real].tolist()
    second = 4 + 2 * pictures.GAP + 40
    shown_image = grid[40 + pictures.GAP :][:40, second : second + 40]
    assert np.array_equal(shown_image, pictures.to_pixels(fetched.images[2]))


def test_objects_are_shown_as_boxes_and_those_that_are_masked_are_filled():
    box = torch.tensor([0.25, 0.25, 0.75, 0.75])
    images = torch.cat([torch.ones(2, 3, 5), box.expand(2, 3, 4)], 2).half()
    batch = replace(
        make_batch(pairs=2),
        images=images,
        image_mask=torch.tensor([[True, False, False], [True, False, False]]),
        object_labels=torch.tensor([[1, -1, -1], [1, -1, -1]]),
        matched=torch.tensor([True, False]),
    )
    masked = images.clone()
    masked[1, 0, :5] = 0
    grid = pictures.inputs(batch, replace(batch, images=masked))
    side = pictures.CANVAS
    top, bottom = grid[:side, -side:], grid[side + pictures.GAP :][:side, -side:]
    colour = pictures.colours(torch.tensor([1]))[0]
    assert (top[side // 4, side // 2] == colour).all() and (top[side // 2, side // 2] == 255).all()
    assert (bottom[side // 2, side // 2] == colour).all() and (bottom[5, 5] == 255).all()
    assert (grid[5, 0] == pictures.MATCHED).all() and (grid[side + 5, 0] == pictures.SWAPPED).all()
