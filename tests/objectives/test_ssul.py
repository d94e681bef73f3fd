from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dsvlp import seed
from dsvlp.errors import RecipeError
from dsvlp.objectives.ssul import SSUL
from dsvlp.recipe import SSUL as Table
from dsvlp.types import IMAGENET_DEVIATION, IMAGENET_MEAN
from tests.batches import make_batch
from tests.objectives.fakes import FakePasses


def _ssul(ratio: int = 1, **table: Any) -> SSUL:
    torch.manual_seed(0)
    return SSUL(Table(**{"cell": 8, "probability": 0.4, **table}), 16, ratio)


def test_on_average_21_6_of_144_cells_are_masked() -> None:
    draws = seed.uniform(torch.randint(0, 2**62, (4000,)), "ssul.select", 144)
    assert abs((draws < 0.15).float().sum(1).mean() - 21.6) < 0.3


@pytest.mark.parametrize("target", ["normalised", "unit"])
def test_the_target_of_a_constant_image_is_its_colour(target: str) -> None:
    colour = torch.tensor([0.7, -0.2, 1.5])
    images = colour[None, :, None, None].expand(8, 3, 32, 32)
    _, targets = _ssul(target=target).prepare(replace(make_batch(), images=images))
    expected = colour
    if target == "unit":
        expected = colour * torch.tensor(IMAGENET_DEVIATION) + torch.tensor(IMAGENET_MEAN)
    assert torch.allclose(targets.colours, expected[None, :, None, None].expand(8, 3, 4, 4), atol=1e-6)


def test_masked_cells_are_filled_with_the_mean_colour_and_no_other_pixel_changes() -> None:
    batch = make_batch()
    view, targets = _ssul().prepare(batch)
    masked = targets.weight[:, 0].bool()
    assert masked.any()
    assert not masked.all()
    for i in range(8):
        for y in range(4):
            for x in range(4):
                where = (i, slice(None), slice(8 * y, 8 * y + 8), slice(8 * x, 8 * x + 8))
                expected = torch.zeros(3, 8, 8) if masked[i, y, x] else batch.images[where]
                assert torch.equal(view.images[where], expected)


@pytest.mark.parametrize("ratio", [1, 2])
def test_loss_agrees_with_a_loop_over_masked_cells(ratio: int) -> None:
    batch = replace(make_batch(pairs=6, captions=2), weight=torch.tensor([1.0, 0, 0, 0, 1, 1]))
    ssul, grid = _ssul(ratio), torch.randn(3, 16, 4 * ratio, 4 * ratio)
    _, targets = ssul.prepare(batch)
    loss = ssul.loss(FakePasses(maps=(grid,)), targets)
    draws = seed.uniform(batch.image_keys, "ssul.select", 16).view(3, 4, 4)
    total, cells = 0.0, 0
    for i in (0, 2):  # both pairs of image 1 have weight 0
        for y in range(4):
            for x in range(4):
                if draws[i, y, x] < 0.4:
                    patch = batch.images[i, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
                    rows, columns = (slice(ratio * k, ratio * k + ratio) for k in (y, x))
                    state = grid[i, :, rows, columns].mean((1, 2))
                    total += float((ssul.head(state) - patch.mean((1, 2))).square().sum().detach())
                    cells += 1
    assert cells > 3
    assert abs(float(loss.sum.detach()) - total) < 1e-4
    assert float(loss.count) == 3 * cells


def test_unmasked_cells_receive_no_gradient() -> None:
    ssul, grid = _ssul(), torch.randn(8, 16, 4, 4, requires_grad=True)
    _, targets = ssul.prepare(make_batch())
    ssul.loss(FakePasses(maps=(grid,)), targets).sum.backward()
    hit = grid.grad.abs().sum(1) > 0
    assert torch.equal(hit, targets.weight[:, 0].bool())


def test_no_masked_cell_gives_exactly_zero_with_the_graph_kept() -> None:
    ssul = _ssul(probability=1e-9)
    _, targets = ssul.prepare(make_batch())
    loss = ssul.loss(FakePasses(maps=(torch.randn(8, 16, 4, 4),)), targets)
    loss.sum.backward()
    assert float(loss.sum.detach()) == float(loss.count) == 0
    assert ssul.head.weight.grad.abs().max() == 0


def test_the_best_constant_is_the_mean_colour() -> None:
    ssul = _ssul()
    _, targets = ssul.prepare(make_batch())
    chosen = targets.colours.movedim(1, -1)[targets.weight[:, 0].bool()]
    expected = (chosen - chosen.mean(0)).square().mean()
    assert abs(ssul.constant_loss(ssul.constant(targets))["loss"] - float(expected)) < 1e-6


def test_a_cell_that_is_no_multiple_of_the_stride_is_refused() -> None:
    with pytest.raises(RecipeError, match="not a multiple of the tower's stride 16"):
        SSUL.from_recipe(Table(cell=24), None, SimpleNamespace(stride=16, width=8), None)
