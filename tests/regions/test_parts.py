"""Parts on disk: complete or absent, the same for any number of workers."""

import os
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dsvlp.data.features.rows import RegionRows
from dsvlp.data.workplace import Workplace
from dsvlp.errors import DataError
from dsvlp.regions.parts import Parts, spans
from dsvlp.types import LabelTable


def regions(span: range) -> RegionRows:
    """Returns regions whose values tell their rows: row r has r % 3 objects of feature r."""
    counts = np.array([row % 3 for row in span])
    images = np.repeat(np.array(span), counts)
    boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (len(images), 1))
    return RegionRows(
        counts, images[:, None].astype(np.float16), boxes, np.zeros(len(images), np.int64), images * 0.0
    )


@pytest.fixture
def parts(tmp_path):
    made = Parts(tmp_path / "x.features", [range(0, 5), range(5, 10), range(10, 12)])
    made.begin({"objects": 4})
    return made


@pytest.mark.parametrize("images", [1, 16, 85, 5000, 10**6])
def test_parts_hold_every_row_once_in_order(images):
    found = spans(SimpleNamespace(images=images))
    assert found[0].start == 0 and found[-1].stop == images and max(map(len, found)) <= 256
    assert all(a.stop == b.start and len(a) for a, b in pairwise(found))


def test_rows_come_back_from_any_row_on(parts):
    for number, span in enumerate(parts.spans):
        parts.write(number, regions(span))
    for first in (0, 3, 5, 11):
        found = RegionRows.joined(list(parts.rows_from(first)))
        expected = regions(range(first, 12))
        np.testing.assert_array_equal(found.counts, expected.counts)
        np.testing.assert_array_equal(found.features, expected.features)


def test_what_is_missing_is_known_and_an_unfinished_file_counts_for_nothing(parts):
    parts.write(1, regions(parts.spans[1]))
    (parts.folder / "part-00000000.abc").write_bytes(b"half")
    assert parts.missing() == [0, 2] and parts.rows_made() == 5


def test_other_arguments_are_refused_by_name(parts):
    parts.begin({"objects": 4})
    with pytest.raises(DataError, match="other arguments: objects"):
        parts.begin({"objects": 5})


def test_a_damaged_part_is_named(parts):
    (parts.folder / "part-00000000.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"part-00000000.safetensors is damaged.*Remove it"):
        list(parts.rows_from(0))


def test_classes_and_width_are_kept(parts):
    table = LabelTable("x", (3,), ("cat",), 7)
    parts.describe(table, 512)
    assert parts.description() == (table, 512)


def write_all(parts: Parts) -> None:
    for number, span in enumerate(parts.spans):
        parts.write(number, regions(span))


def test_one_process_alone_joins_when_all_parts_are_there(parts, tmp_path):
    with parts.joining() as early:
        assert not early
    write_all(parts)
    with pytest.raises(OSError, match="full"), parts.joining():
        raise OSError("the disk is full")
    with parts.joining() as first, parts.joining() as second:
        assert first and not second
        (tmp_path / "x.features").mkdir()
    with parts.joining() as later:
        assert not later
    assert parts.missing() == [] and parts.rows_made() == 12, "to those who come later all is made"
    assert [path.name for path in tmp_path.iterdir()] == ["x.features"]


def test_a_folder_that_someone_removed_is_told_from_one_that_was_joined(parts):
    parts.remove()
    parts.remove()
    with pytest.raises(DataError, match=r"was removed while parts were made.*same command again"):
        parts.missing()


def test_no_file_of_the_folder_is_open_when_it_is_removed(parts, tmp_path, monkeypatch):
    """NFS keeps an open file under another name, and the folder with it."""
    removed = []

    def remove(path, **_):
        handles = [os.readlink(handle) for handle in Path("/proc/self/fd").iterdir() if handle.is_symlink()]
        assert not [name for name in handles if name.startswith(str(tmp_path))]
        removed.append(path)

    monkeypatch.setattr(shutil, "rmtree", remove)
    write_all(parts)
    with parts.joining() as alone:
        assert alone
    with Workplace(tmp_path / "y.features", {}, False, ".features") as place:
        (place.folder / "manifest.json").write_text("{}")
        place.publish()
    assert len(removed) >= 2 and (tmp_path / "y.features").is_dir()
