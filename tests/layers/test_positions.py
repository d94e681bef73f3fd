import torch

import dsvlp.vision  # noqa: F401  # isort: skip
from timm.layers import resample_abs_pos_embed

from dsvlp.layers.positions import GridPositions, resample


def test_a_grid_of_the_tables_size_gets_the_table() -> None:
    positions = GridPositions(4, 8)
    assert torch.equal(positions(torch.zeros(2, 8, 4, 4))[1], positions.table[0])


def test_another_grid_gets_timms_bicubic_interpolation() -> None:
    table = torch.randn(1, 144, 8)
    expected = resample_abs_pos_embed(table, [18, 18], [12, 12], num_prefix_tokens=0)
    assert torch.allclose(resample(table, (12, 12), (18, 18)), expected, atol=1e-6)
