import pytest
import torch

import dsvlp.vision  # noqa: F401  # isort: skip
from timm.layers import resample_abs_pos_embed

from dsvlp.layers.positions import GridPositions, grid_positions, resample


def test_a_grid_of_the_tables_size_gets_the_table() -> None:
    positions = GridPositions(4, 8)
    assert torch.equal(positions(torch.zeros(2, 8, 4, 4))[1], positions.table[0])


def test_another_grid_gets_timms_bicubic_interpolation() -> None:
    table = torch.randn(1, 144, 8)
    expected = resample_abs_pos_embed(table, [18, 18], [12, 12], num_prefix_tokens=0)
    assert torch.allclose(resample(table, (12, 12), (18, 18)), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["sine", "learned"])
def test_every_cell_has_a_place_of_its_own_that_no_canvas_changes(kind: str) -> None:
    positions = grid_positions(kind, 7, 16)
    whole = positions(torch.zeros(1, 16, 7, 5)).detach().view(7, 5, 16)
    assert len(whole.flatten(0, 1).unique(dim=0)) == 35
    part = positions(torch.zeros(1, 16, 4, 3)).detach().view(4, 3, 16)
    assert torch.equal(part, whole[:4, :3])


def test_without_positions_cells_are_a_set() -> None:
    grid = torch.randn(2, 8, 3, 4)
    assert torch.equal(grid_positions("none", 4, 8)(grid), grid.flatten(2).transpose(1, 2))
