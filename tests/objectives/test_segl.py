from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dsvlp.errors import RecipeError
from dsvlp.objectives.segl import SEGL, centres
from dsvlp.recipe import SEGL as Table
from dsvlp.types import Batch, DataFacts
from tests.batches import SHAPES, make_batch, make_facts
from tests.objectives.fakes import FakePasses

CELL = 8


def _segl(**table: Any) -> SEGL:
    torch.manual_seed(0)
    return SEGL(Table(**table), len(SHAPES.names), 16, CELL)


def test_labels_come_from_the_cells_centres_on_a_checker_image() -> None:
    checker = (torch.arange(64)[:, None] // 4 + torch.arange(64) // 4) % 2
    checker[4::8, 4::8] = 3
    assert (centres(checker[None], CELL) == 3).all()
    random = torch.randint(0, 9, (2, 96, 96))
    exact = F.interpolate(random[:, None].float(), (12, 12), mode="nearest-exact")[:, 0].long()
    assert torch.equal(centres(random, CELL), exact)


def test_loss_agrees_with_a_loop_over_cells() -> None:
    batch = replace(make_batch(pairs=6, captions=2), weight=torch.tensor([1.0, 0, 0, 0, 1, 1]))
    segl, grid = _segl(), torch.randn(3, 16, 4, 4)
    _, targets = segl.prepare(batch)
    loss = segl.loss(FakePasses(maps=(grid,)), targets)
    total, cells, correct = 0.0, 0, 0
    for i in (0, 2):  # both pairs of image 1 have weight 0
        for y in range(4):
            for x in range(4):
                label = int(batch.segmentation[i, y * CELL + 4, x * CELL + 4])
                if label >= 0:
                    logits = segl.head.weight[:, :, 0, 0] @ grid[i, :, y, x] + segl.head.bias
                    total -= float(logits.log_softmax(0)[label].detach())
                    correct += int(logits.argmax()) == label
                    cells += 1
    assert cells > 5
    assert abs(float(loss.sum.detach()) - total) < 1e-4
    assert float(loss.count) == cells
    assert [float(v) for v in loss.metrics["accuracy"]] == [correct, cells]


def test_after_fusion_every_pair_is_a_row() -> None:
    batch = make_batch(pairs=6, captions=2)
    segl = _segl(at="post")
    _, targets = segl.prepare(batch)
    assert targets.labels.shape == (6, 4, 4)
    grid = torch.randn(6, 16, 4, 4)
    loss = segl.loss(FakePasses(maps=(grid,)), targets)
    assert float(loss.count) == float((targets.labels >= 0).sum())


def _with_maps(batch: Batch) -> Batch:
    labels = torch.zeros(8, 32, 32, dtype=torch.long)
    labels[:, :, 16:] = -1
    labels[5:] = -1  # no map
    picture = torch.ones(8, 32, 32, dtype=torch.bool)
    picture[:, 24:] = False
    return replace(batch, segmentation=labels, image_mask=picture)


def test_unlabelled_is_a_class_of_its_own_where_the_recipe_says() -> None:
    batch = _with_maps(make_batch())
    ignoring, counting = _segl(), _segl(unlabelled="class")
    assert counting.head.weight.shape[0] == ignoring.head.weight.shape[0] + 1 == 5
    _, ignored = ignoring.prepare(batch)
    _, counted = counting.prepare(batch)
    assert float(ignored.count) == 5 * 4 * 2
    # Padding and images without a map stay ignored.
    assert float(counted.count) == 5 * (4 * 2 + 3 * 2)
    assert (counted.labels[:5, :3, 2:] == 4).all()
    assert (counted.labels[:5, 3, 2:] == -1).all()


def test_coco_stuff_with_unlabelled_has_the_papers_172_classes() -> None:
    segl = SEGL(Table(unlabelled="class"), 171, 768, 32)
    assert sum(p.numel() for p in segl.parameters()) == 172 * 769


@pytest.mark.parametrize("present", [False, True])
def test_images_without_maps_give_exactly_zero_with_the_graph_kept(present: bool) -> None:
    batch = make_batch()
    none = torch.full((8, 32, 32), -1) if present else None
    segl = _segl(unlabelled="class")
    _, targets = segl.prepare(replace(batch, segmentation=none))
    loss = segl.loss(FakePasses(maps=(torch.randn(8, 16, 4, 4),)), targets)
    loss.sum.backward()
    assert float(loss.sum.detach()) == float(loss.count) == 0
    assert segl.head.weight.grad.abs().max() == 0


def test_a_coarser_grid_is_enlarged_to_the_labels() -> None:
    segl, coarse = _segl(), torch.randn(8, 16, 2, 2)
    _, targets = segl.prepare(make_batch())
    enlarged = F.interpolate(segl.head(coarse), (4, 4), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(enlarged, targets.labels, ignore_index=-1, reduction="sum")
    assert torch.allclose(segl.loss(FakePasses(maps=(coarse,)), targets).sum, expected)


def test_data_without_maps_is_refused() -> None:
    facts = DataFacts(40, 0, 1, 2, 3)
    with pytest.raises(RecipeError, match="no segmentation maps"):
        SEGL.from_recipe(Table(), None, None, facts)
    assert make_facts().segmentation is not None
