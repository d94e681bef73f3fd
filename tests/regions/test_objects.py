"""Objects of a data set's own boxes, and of a grid."""

import numpy as np
import pytest
import torch

from dsvlp.data.rows import RowReader, StoredRow
from dsvlp.errors import DataError
from dsvlp.regions.objects import GivenBoxes, GridBoxes
from tests.regions.pictures import small_data


def row(boxes: list[list[float]], labels: list[int]) -> StoredRow:
    """Returns a row of 40 x 20 pixels with these boxes."""
    nothing = np.zeros(0, np.uint8)
    return StoredRow(nothing, 20, 40, np.array(boxes, "<f4").reshape(-1, 4), np.array(labels, "<i4"), nothing)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("objects"), 6)


def test_given_boxes_are_the_rows_own_as_shares_with_contiguous_classes(dataset):
    source = GivenBoxes(dataset, 3)
    rows = RowReader(dataset, source.annotations, 1).read(np.arange(2))
    found = source.find([torch.zeros(3, 4, 4)] * 2, rows)
    assert found.mask.tolist() == [[True, True, False], [False] * 3], "every second image has two"
    size = torch.tensor([rows[0].width, rows[0].height] * 2)
    stored = torch.from_numpy(rows[0].boxes_xyxy[::-1].copy())  # the second is the larger
    torch.testing.assert_close(found.boxes[0, :2] * size, stored)
    assert [source.table.names[k] for k in found.labels[0, :2].tolist()] == ["dog", "cat"]
    assert found.confidences.tolist() == [[1, 1, 0], [0, 0, 0]] and (found.labels[1] == -1).all()


def test_of_too_many_given_boxes_the_largest_are_taken(dataset):
    many = row([[0, 0, 1, 1], [0, 0, 40, 20], [0, 0, 20, 20]], [3, 7, 3])
    found = GivenBoxes(dataset, 2).find([torch.zeros(3, 4, 4)], [many])
    assert found.boxes[0].tolist() == [[0, 0, 1, 1], [0, 0, 0.5, 1]]


def test_a_grids_cells_tile_the_picture():
    source = GridBoxes(9)
    found = source.find([torch.zeros(3, 4, 4)] * 2, [row([], [])] * 2)
    boxes = found.boxes[1]
    assert found.mask.all() and boxes.shape == (9, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert float(areas.sum()) == pytest.approx(1) and len(set(map(tuple, boxes.tolist()))) == 9
    assert boxes[1, :2].tolist() == pytest.approx([1 / 3, 0]), "in reading order"


def test_a_grid_of_no_square_number_is_refused_with_the_next_ones():
    with pytest.raises(DataError, match="--objects 9 or 16"):
        GridBoxes(10)
