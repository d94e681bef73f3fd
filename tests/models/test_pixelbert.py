"""Pixel-BERT: sizes of the paper, the draw of pixels, padding, and what runs how often."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dsvlp import catalog, config, recipe, system
from dsvlp.engine.optim import parameter_groups
from dsvlp.errors import RecipeError
from dsvlp.models.pixelbert import PixelBERT, cells_with_picture, drawn_cells
from dsvlp.recipe import PixelBERTModel
from dsvlp.seed import bits
from dsvlp.types import States
from tests.batches import make_batch, make_facts, make_pixelbert_recipe
from tests.models.test_cnn import stirred


def full_size() -> PixelBERT:
    """Returns the paper's model without memory."""
    table = recipe.load("pretrain_pixelbert", ["model.pretrained=false"]).model
    with torch.device("meta"):
        return PixelBERT.from_recipe(table)


def tiny(*overrides: str) -> PixelBERT:
    model = system.build(make_pixelbert_recipe(*overrides), make_facts()).model
    assert isinstance(model, PixelBERT)
    stirred(model.image.trunk)
    return model


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def keys(number: int) -> Tensor:
    return bits(torch.arange(number), "test", 1)[:, 0]


def test_the_full_size_model_has_the_published_parameter_counts() -> None:
    model = full_size()
    assert count(model.image.trunk) == 23_508_032
    assert count(model.text.encoder.layer[0]) == 7_087_872
    assert count(model.text) == 23_837_184 + 85_054_464
    projection, semantic = 2048 * 768 + 768, 768
    assert count(model) == 23_508_032 + projection + semantic + 23_837_184 + 85_054_464


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(800, 1066, (12, 17)), (800, 1333, (12, 21)), (600, 1000, (9, 16))]
)
def test_images_of_the_papers_sizes_make_its_grids(height: int, width: int, grid: tuple[int, int]) -> None:
    model = full_size()
    trunk = model.image.trunk(torch.empty(1, 3, height, width, device="meta"))
    assert tuple(trunk.shape[2:]) == (-(-height // 32), -(-width // 32))
    states = model.encode_image(torch.empty(2, 3, height, width, device="meta"))
    assert states.tokens.shape == (2, grid[0] * grid[1], 768)
    assert grid[0] * grid[1] in (204, 252, 144)


@pytest.mark.parametrize(("height", "width", "cells"), [(800, 1066, 204), (1333, 800, 252), (600, 1000, 144)])
@pytest.mark.parametrize("canvas", [(1344, 1344), (1408, 1376)])
def test_a_canvas_adds_no_cell(height: int, width: int, cells: int, canvas: tuple[int, int]) -> None:
    picture = torch.zeros(2, *canvas, dtype=torch.bool)
    picture[0, :height, :width] = True
    picture[1] = True
    grid = torch.empty(2, canvas[0] // 64, canvas[1] // 64, 1)
    found = cells_with_picture(picture, grid)
    lines, columns = -(-height // 32) // 2, -(-width // 32) // 2
    assert found[0].sum() == cells == lines * columns and found[0, :lines, :columns].all()
    assert found[1].all()


@pytest.mark.parametrize("sizes", [(800, 1333), (600, 1000), (192, None)])
def test_the_recipe_knows_its_cells(sizes: tuple[int, int | None]) -> None:
    table = PixelBERTModel.model_validate(
        {
            "system": "pixelbert",
            "image_size": sizes[0],
            "longest_side": sizes[1],
            "text": {"layers": 1, "width": 8, "heads": 2, "feed_forward": 8},
        }
    )
    longest = sizes[1] or sizes[0]
    grid = cells_with_picture(torch.ones(1, sizes[0], longest, dtype=torch.bool), torch.empty(1, 99, 99, 1))
    assert (table.most_cells, table.cells_of_longest_side) == (grid.numel(), grid.shape[2])


def random_masks(images: int, height: int, width: int) -> Tensor:
    """Pictures of all sizes at the top left of a canvas of h x w cells."""
    draw = torch.Generator().manual_seed(0)
    lines = torch.randint(1, height + 1, (images, 1, 1), generator=draw)
    columns = torch.randint(1, width + 1, (images, 1, 1), generator=draw)
    return (torch.arange(height)[:, None] < lines) & (torch.arange(width) < columns)


def test_exactly_100_distinct_cells_with_picture_are_drawn_or_all_where_there_are_fewer() -> None:
    masks = random_masks(300, 21, 21)
    drawn = drawn_cells(masks, keys(300), 100)
    assert drawn.shape == (300, 100) and (drawn.diff(dim=1) > 0).all()
    shown, valid = masks.flatten(1).gather(1, drawn).sum(1), masks.flatten(1).sum(1)
    assert torch.equal(shown, valid.clamp(max=100))
    assert (valid < 100).any() and (valid > 100).any(), "both cases must be there"


def test_each_cell_is_drawn_as_often_as_any_other_and_images_differ() -> None:
    drawn = drawn_cells(torch.ones(2000, 12, 17, dtype=torch.bool), keys(2000), 100)
    often = torch.bincount(drawn.flatten(), minlength=204) / 2000
    assert (often - 100 / 204).abs().max() < 5 * (0.25 / 2000) ** 0.5
    assert len(drawn.unique(dim=0)) == 2000


def test_the_draw_depends_on_the_image_alone_not_on_its_batch_place_or_canvas() -> None:
    masks, some = random_masks(20, 12, 21), torch.tensor([7, 2, 13])
    drawn = drawn_cells(masks, keys(20), 100)
    assert torch.equal(drawn_cells(masks[some], keys(20)[some], 100), drawn[some])
    larger = torch.zeros(20, 16, 30, dtype=torch.bool)
    larger[:, :12, :21] = masks
    again = drawn_cells(larger, keys(20), 100)
    for mask, one, wide, other in zip(masks, drawn, larger, again, strict=True):
        places = {divmod(cell, 21) for cell in one.tolist() if mask.flatten()[cell]}
        assert places == {divmod(cell, 30) for cell in other.tolist() if wide.flatten()[cell]}


def test_training_draws_and_evaluation_keeps_all() -> None:
    model = tiny("model.image_size=256", "model.pixels=5")
    images = torch.randn(3, 3, 256, 256)
    model.train()
    drawn = model.encode_image(images, None, keys(3))
    every = model.encode_image(images)
    assert drawn.tokens.shape == (3, 5, 32) and every.tokens.shape == (3, 16, 32)
    cells = drawn_cells(torch.ones(3, 4, 4, dtype=torch.bool), keys(3), 5)
    for image in range(3):
        torch.testing.assert_close(drawn.tokens[image], every.tokens[image, cells[image]])
    model.eval()
    assert model.encode_image(images, None, keys(3)).tokens.shape == (3, 16, 32)


@pytest.mark.parametrize(("pixels", "size", "told"), [(100, 600, True), (81, 600, False), (0, 64, False)])
def test_a_recipe_whose_images_have_too_few_cells_is_told_so(pixels: int, size: int, told: bool) -> None:
    shown = make_pixelbert_recipe(f"model.pixels={pixels}", f"model.image_size={size}")
    assert any("81 cells" in note for note in catalog.notes(shown)) == told


def test_the_papers_recipes_images_have_enough_cells() -> None:
    assert catalog.notes(recipe.load("pretrain_pixelbert")) == []


def test_the_semantic_vector_is_added_to_every_pixel_and_to_no_word() -> None:
    model = tiny().eval()
    images, batch = torch.randn(2, 3, 128, 128), make_batch(pairs=2, partners=False)
    before = model.encode_image(images).tokens, model.encode_text(batch.text_ids, batch.text_mask).tokens
    with torch.no_grad():
        model.image.semantic += 1
    after = model.encode_image(images).tokens, model.encode_text(batch.text_ids, batch.text_mask).tokens
    torch.testing.assert_close(after[0], before[0] + 1)
    assert torch.equal(after[1], before[1])


def test_pixels_are_normed_where_the_recipe_says_so() -> None:
    images = torch.randn(2, 3, 128, 128)
    tokens = tiny("model.norm_pixels=true").eval().encode_image(images).tokens
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens.std(-1, correction=0), torch.ones(2, 4))
    names = {name for name, _ in tiny().named_parameters()}
    assert not any(name.startswith("image.norm") for name in names), "the paper has none (P4b)"


def fused(model: PixelBERT, pixels: States) -> tuple[Tensor, Tensor]:
    """Returns the joint feature and the words' states with made-up texts."""
    batch = make_batch(pairs=len(pixels.tokens), partners=False)
    out = model.fuse(pixels, model.encode_text(batch.text_ids, batch.text_mask))
    return out.pooled, out.text.tokens[batch.text_mask]


def test_masked_cells_and_masked_words_are_read_by_nobody() -> None:
    model = tiny("model.positions=sine").eval()
    images = torch.randn(4, 3, 192, 192)
    picture = torch.zeros(4, 192, 192, dtype=torch.bool)
    picture[:, :140, :] = True
    pixels = model.encode_image(images, picture)
    assert pixels.mask.view(4, 3, 3)[:, :2].all() and not pixels.mask.view(4, 3, 3)[:, 2].any()
    noise = pixels.tokens.masked_fill(~pixels.mask[..., None], 7.0)
    alone = States(pixels.tokens[:, :6], pixels.mask[:, :6])
    for other in (States(noise, pixels.mask), alone):
        for one, two in zip(fused(model, pixels), fused(model, other), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=2e-6)
    batch = make_batch(pairs=4, partners=False)
    ids = torch.cat((batch.text_ids, torch.full((4, 4), 9)), 1)
    mask = torch.cat((batch.text_mask, torch.zeros(4, 4, dtype=torch.bool)), 1)
    longer = model.fuse(pixels, model.encode_text(ids, mask))
    torch.testing.assert_close(longer.pooled, fused(model, pixels)[0], rtol=0, atol=2e-6)


def test_a_canvas_changes_pixels_within_the_cnns_reach_of_its_edge_and_no_others() -> None:
    """Mean colour beside the picture is not the zeros that a convolution puts behind an image's edge."""
    model = tiny("model.positions=learned", "model.image_size=640").eval()
    alone, canvas = torch.randn(1, 3, 128, 640), torch.zeros(1, 3, 256, 832)
    canvas[:, :, :128, :640] = alone
    picture = torch.zeros(1, 256, 832, dtype=torch.bool)
    picture[:, :128, :640] = True
    model.image.positions = tiny("model.positions=learned", "model.image_size=832").image.positions
    one = model.image(alone)[0]
    states = model.encode_image(canvas, picture)
    assert states.mask.sum() == one.shape[0] * one.shape[1] == 2 * 10
    other = model.image(canvas)[0, :2, :10]
    assert not torch.allclose(one[:, -1], other[:, -1], atol=1e-3), "nothing is tested"
    wide = torch.zeros(1, 3, 128, 832)
    wide[..., :640] = alone
    torch.testing.assert_close(one[:, :5], model.image(wide)[0, :, :5], rtol=0, atol=1e-5)


@pytest.mark.parametrize("captions", [1, 4])
def test_the_cnn_runs_once_an_image_however_many_captions(captions: int) -> None:
    built = system.build(make_pixelbert_recipe(), make_facts())
    seen = []
    built.model.image.trunk.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    batch = make_batch(pairs=8, captions=captions, image_size=128)
    built(system.TrainRequest(built.prepare(batch)))
    assert seen == [8 // captions]


def test_four_captions_of_an_image_train_as_four_pairs_that_bring_it_each() -> None:
    """With the statistics frozen and every pixel kept, sharing the CNN is a matter of cost alone."""
    built = system.build(make_pixelbert_recipe(), make_facts())
    grouped = make_batch(pairs=8, captions=4, image_size=128)
    own = grouped.pairs[:, 0]
    rows = torch.arange(8)
    single = replace(
        grouped,
        images=grouped.images[own],
        image_keys=grouped.image_keys[own],
        rows=rows,
        pairs=torch.stack((rows, grouped.pairs[:, 1]), 1),
        segmentation=None,
        boxes_cxcywh=None,
        box_labels=None,
    )
    found = []
    for batch in (grouped, single):
        built.zero_grad()
        losses = built(system.TrainRequest(built.prepare(batch)))
        torch.stack([loss.sum for loss in losses.values()]).sum().backward()
        found.append({name: p.grad.clone() for name, p in built.named_parameters() if p.grad is not None})
    top = max(gradient.abs().max() for gradient in found[0].values())
    for name, gradient in found[0].items():
        assert (gradient - found[1][name]).abs().max() < 1e-5 * top, name


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activation_checkpointing_changes_no_bit_with_dropout_and_trained_statistics(mode: str) -> None:
    found = []
    for chosen in ("none", mode):
        keys = ("model.text.dropout=0.1", "model.image.batch_norm=train", "model.pixels=2")
        built = system.build(
            make_pixelbert_recipe(*keys, f"engine.activation_checkpointing={chosen}"), make_facts()
        )
        torch.manual_seed(3)
        losses = built(system.TrainRequest(built.prepare(make_batch(image_size=128))))
        torch.stack([loss.sum for loss in losses.values()]).sum().backward()
        gradients = {name: p.grad for name, p in built.named_parameters() if p.grad is not None}
        found.append(gradients | dict(built.named_buffers()))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("name", ["tiny_pixelbert", "pretrain_pixelbert"])
def test_every_parameter_of_the_cnn_is_in_sgd_and_no_other(name: str) -> None:
    shown = recipe.load(name, ["model.pretrained=false"])
    with torch.device("meta"):
        built = system.build(shown, make_facts())
    algorithm = {id(p): g["algorithm"] for g in parameter_groups(built, shown) for p in g["params"]}
    trunk = {id(p) for p in built.model.image.trunk.parameters()}
    assert {key for key, kind in algorithm.items() if kind == "sgd"} == trunk
    assert len(algorithm) == len(list(built.parameters())), "every parameter is in a group"


def test_without_a_table_of_its_own_the_cnn_is_trained_as_the_rest() -> None:
    tables = config.dump(make_pixelbert_recipe())
    del tables["optimizer"]["cnn"]
    shown = recipe.from_json(tables, "test")
    groups = parameter_groups(system.build(shown, make_facts()), shown)
    assert {group["algorithm"] for group in groups} == {"adamw"}


def test_an_update_rule_for_a_cnn_is_refused_where_there_is_none() -> None:
    with pytest.raises(RecipeError, match=r"optimizer\.cnn .* svl has none"):
        recipe.load("tiny_svl", ["optimizer.cnn.lr=0.1"])
