import subprocess
import sys

import numpy as np
import pytest

from dsvlp.data import rows
from dsvlp.data.rows import RowReader
from dsvlp.errors import DataError
from tests.data.pictures_of_noise import SIDES, jpeg, make_dataset

BOTH = frozenset({"segmentation", "boxes"})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("rows"), "rows", [1] * 11, rows_per_shard=3, maps=True)


def test_rows_of_any_order_over_shards_are_what_was_written(dataset):
    reader = RowReader(dataset, BOTH, open_shards=2)
    wanted = np.array([10, 0, 4, 4, 9, 1])
    for number, row in zip(wanted, reader.read(wanted), strict=True):
        height, width = SIDES[number % 3]
        assert row.jpeg.tobytes() == jpeg(int(number), height, width)
        assert (row.height, row.width) == (height, width)
        assert row.box_labels.tolist() == ([5, 9] if number % 2 == 0 else [])
        assert row.boxes_xyxy.shape == (2 if number % 2 == 0 else 0, 4)
        assert (row.map_png.size > 0) == (number % 2 == 0)


def test_annotations_that_nobody_asked_for_are_not_read(dataset):
    row = RowReader(dataset, frozenset(), 1).read(np.array([0]))[0]
    assert row.jpeg.size and not row.map_png.size and not row.box_labels.size


def test_no_more_shards_than_allowed_stay_open_and_old_rows_stay_valid(dataset):
    reader = RowReader(dataset, BOTH, open_shards=1)
    old = reader.read(np.array([0]))[0]
    reader.read(np.arange(11))
    assert len(reader._open) == 1
    assert old.jpeg.tobytes() == jpeg(0, *SIDES[0])


def test_all_shards_share_one_compilation(dataset):
    before = rows.compiled.cache_info().misses
    for _ in range(3):
        RowReader(dataset, BOTH, 4).read(np.arange(11))
    assert rows.compiled.cache_info().misses <= before + 1


def test_a_shard_that_vanished_is_named(tmp_path):
    dataset = make_dataset(tmp_path, "gone", [1, 1])
    dataset.shards[0].path.unlink()
    with pytest.raises(DataError, match=r"rows-00000.beton cannot be opened"):
        RowReader(dataset, frozenset(), 1).read(np.array([0]))


def test_importing_ffcv_leaves_torchs_threads_alone():
    code = "import torch; torch.set_num_threads(2); import dsvlp.data.loader; print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "2", done.stderr
