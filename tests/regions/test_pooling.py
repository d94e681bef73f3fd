"""Pooling inside boxes: against sampling point by point, and against RoIAlign where it is there."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsvlp import vision
from dsvlp.regions.pooling import POINTS, cell_weights, pooled


def boxes_of(count: int, seed: int = 0) -> Tensor:
    """Returns drawn boxes [1, count, 4] as shares; the first three are all, a corner, a sliver."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.rand(count, 2, 2, generator=generator).sort(1).values
    drawn = torch.cat([ends[:, 0], ends[:, 1]], 1)
    named = torch.tensor([[0, 0, 1, 1], [0, 0, 0.01, 0.01], [0.999, 0.2, 1, 0.9]])
    return torch.cat([named, drawn])[None]


def sampled(maps: Tensor, boxes: Tensor, points: int) -> Tensor:
    """Returns [1, K, C]: the mean of bilinear samples, box by box."""
    steps = (torch.arange(points) + 0.5) / points
    out = []
    for left, top, right, bottom in boxes[0].tolist():
        x, y = left + steps * (right - left), top + steps * (bottom - top)
        grid = torch.stack(torch.meshgrid(2 * x - 1, 2 * y - 1, indexing="xy"), -1)[None]
        out.append(F.grid_sample(maps, grid, padding_mode="border", align_corners=False).mean((2, 3))[0])
    return torch.stack(out)[None]


@pytest.mark.parametrize("size", [(7, 5), (1, 9), (1, 1)])
@pytest.mark.parametrize("points", [1, 3, POINTS])
def test_the_product_is_the_mean_of_bilinear_samples(size, points):
    maps, boxes = torch.randn(1, 6, *size), boxes_of(20)
    torch.testing.assert_close(
        pooled(maps, boxes, points), sampled(maps, boxes, points), rtol=1e-4, atol=1e-5
    )


@pytest.mark.skipif(vision.DECLARED is not None, reason="torchvision's operators do not load here")
def test_it_is_roi_align_averaged():
    from torchvision.ops import roi_align

    maps, boxes = torch.randn(1, 6, 8, 11), boxes_of(20)
    cells = boxes[0] * torch.tensor([11, 8, 11, 8])
    theirs = roi_align(maps, [cells], 7, spatial_scale=1.0, sampling_ratio=2, aligned=True).mean((2, 3))
    torch.testing.assert_close(pooled(maps, boxes)[0], theirs, rtol=1e-4, atol=1e-5)


def test_a_cells_own_box_gives_mostly_that_cell_and_a_constant_map_its_constant():
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    one = torch.tensor([[[0.25, 1 / 3, 0.5, 2 / 3]]])  # cell (1, 1), of value 5
    assert pooled(maps, one).item() == pytest.approx(5, abs=1e-5)  # a linear map's mean is its middle
    flat = pooled(torch.full((1, 2, 3, 4), 7.0), boxes_of(9))
    torch.testing.assert_close(flat, torch.full_like(flat, 7))


def test_images_do_not_see_each_other():
    maps, boxes = torch.randn(3, 4, 5, 6), torch.cat([boxes_of(4, seed) for seed in range(3)])
    apart = [pooled(maps[k : k + 1], boxes[k : k + 1]) for k in range(3)]
    torch.testing.assert_close(pooled(maps, boxes), torch.cat(apart))


def test_cells_weigh_one_in_all():
    begin, end = boxes_of(30)[0, :, 0], boxes_of(30)[0, :, 2]
    torch.testing.assert_close(cell_weights(begin, end, 13, POINTS).sum(-1), torch.ones(33))
