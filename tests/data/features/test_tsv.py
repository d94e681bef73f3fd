"""LXMERT's tsv: found by image id in any order, read line by line, refused by line number."""

import base64
import os

import numpy as np
import pytest

from dsvlp.data.dataset import Dataset
from dsvlp.data.features.matching import short
from dsvlp.data.features.rows import RegionRows
from dsvlp.data.features.stored import Features
from dsvlp.data.features.tsv import FIELDS, read_tsv
from dsvlp.data.features.writer import write
from dsvlp.errors import DataError
from tests.data.features.regions_of_noise import QUIET, WIDTH, regions_of
from tests.data.pictures_of_noise import make_dataset

COUNTS = [3, 5, 1, 4, 2, 4]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("tsv"), "a", [1] * len(COUNTS))


def encoded(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(array.astype(dtype).tobytes()).decode()


def given(dataset: Dataset, row: int) -> RegionRows:
    regions = regions_of(dataset, row, COUNTS[row])
    return RegionRows(
        regions.counts, regions.features, regions.boxes_xyxy, regions.labels * 7, regions.confidences
    )


def line(dataset: Dataset, row: int, **changes) -> dict[str, str]:
    """A line's fields; image 3 is called COCO_val2014_000000000003, as in LXMERT's file."""
    regions = given(dataset, row)
    height, width = dataset.sizes(np.array([row]))[0]
    nothing = encoded(np.zeros(COUNTS[row]), "<f4")
    fields = {
        "img_id": f"COCO_val2014_{row:012d}",
        "img_h": str(height),
        "img_w": str(width),
        "objects_id": encoded(regions.labels, "<i8"),
        "objects_conf": encoded(regions.confidences, "<f4"),
        "attrs_id": nothing,
        "attrs_conf": nothing,
        "num_boxes": str(COUNTS[row]),
        "boxes": encoded(regions.boxes_xyxy, "<f4"),
        "features": encoded(regions.features, "<f4"),
    }
    return fields | changes


def tsv(folder, lines: list[dict[str, str]], name: str = "objects.tsv"):
    path = folder / name
    path.write_text("".join("\t".join(fields[name] for name in FIELDS) + "\n" for fields in lines))
    return path


def test_lines_in_any_order_are_the_rows_of_the_data_set(dataset, tmp_path):
    order = [4, 0, 5, 2, 1, 3]
    stranger = line(dataset, 0, img_id="COCO_val2014_000000009999")
    source = read_tsv([tsv(tmp_path, [stranger, *(line(dataset, row) for row in order)])], dataset)
    assert source.width == WIDTH and len(source.table.ids) == 1600 and not source.missing
    for first in (0, 4):
        for row, found in enumerate(source.rows(first), first):
            right = given(dataset, row)
            for name in ("counts", "features", "boxes_xyxy", "labels", "confidences"):
                np.testing.assert_array_equal(getattr(found, name), getattr(right, name))
    manifest = write(source, dataset, tmp_path / "a.features", QUIET)
    assert manifest.images == len(COUNTS) and manifest.table == source.table


def bare(dataset: Dataset, row: int) -> dict[str, str]:
    names = ("objects_id", "objects_conf", "attrs_id", "attrs_conf", "boxes", "features")
    return line(dataset, row, num_boxes="0", **dict.fromkeys(names, ""))


@pytest.mark.parametrize("row", [0, 2])
def test_a_line_without_objects_is_an_image_without_objects(dataset, tmp_path, row):
    lines = [bare(dataset, n) if n == row else line(dataset, n) for n in range(len(COUNTS))]
    source = read_tsv([tsv(tmp_path, lines)], dataset)
    assert source.width == WIDTH
    manifest = write(source, dataset, tmp_path / "a.features", QUIET)
    found = Features.open(tmp_path / "a.features", dataset).read(np.arange(len(COUNTS)))
    assert [not mask.any() for mask in found.mask] == [n == row for n in range(len(COUNTS))]
    assert manifest.adjusted.counts["image without objects"] == 1


def test_lines_without_any_object_are_refused(dataset, tmp_path):
    path = tsv(tmp_path, [bare(dataset, row) for row in range(len(COUNTS))])
    with pytest.raises(DataError, match=r"objects.tsv has no object in any image of .*a.beton"):
        read_tsv([path], dataset)


def test_images_may_stand_in_several_files_but_once(dataset, tmp_path):
    train = tsv(tmp_path, [line(dataset, row) for row in (4, 1)], "train.tsv")
    rest = tsv(tmp_path, [line(dataset, row) for row in (0, 5, 2, 3)], "val.tsv")
    source = read_tsv([train, rest], dataset)
    assert source.name == "LXMERT tsv train.tsv and val.tsv" and not source.missing
    for row, found in enumerate(source.rows(0)):
        np.testing.assert_array_equal(found.features, given(dataset, row).features)
    seen = source.arguments
    os.utime(rest, ns=(0, 0))
    assert read_tsv([train, rest], dataset).arguments != seen
    again = tsv(tmp_path, [line(dataset, 3)], "again.tsv")
    with pytest.raises(DataError, match=r"again\.tsv: line 1 is of image .*val\.tsv: line 4.*Leave one"):
        read_tsv([train, rest, again], dataset)


def test_absent_images_are_counted_before_anything_is_written(dataset, tmp_path):
    source = read_tsv([tsv(tmp_path, [line(dataset, row) for row in (0, 2, 3, 5)])], dataset)
    assert list(source.missing) == ["0001.jpg", "0004.jpg"]
    assert [int(rows.counts[0]) for rows in source.rows(0)] == [3, 0, 1, 4, 0, 4]
    with pytest.raises(DataError, match=r"nothing of 2 of 6 images .*0001\.jpg, 0004\.jpg"):
        write(source, dataset, tmp_path / "a.features", QUIET)


def test_class_names_come_from_their_file(dataset, tmp_path):
    path = tsv(tmp_path, [line(dataset, row) for row in range(6)])
    names = tmp_path / "vocab.txt"
    names.write_text("".join(f"thing {number}\n" for number in range(64)))
    assert read_tsv([path], dataset, names).table.names[63] == "thing 63"
    names.write_text("few\n")
    with pytest.raises(DataError, match=r"row 0\): object 0 has the class: \d+\. .*label table 'vocab'"):
        write(read_tsv([path], dataset, names), dataset, tmp_path / "a.features", QUIET)


BAD = {
    "base64": ({"boxes": "!!!!"}, r"objects\.tsv: line 3: boxes is not base64"),
    "boxes": ({"boxes": encoded(np.zeros(3), "<f4")}, r"line 3: boxes has 12 bytes for 1 objects"),
    "features": ({"features": "QUJD"}, r"line 3: features has 3 bytes for 1 objects"),
    "count": ({"num_boxes": "many"}, r"line 3: .*many.*whole numbers"),
    "negative": ({"num_boxes": "-1"}, r"line 3: num_boxes is -1"),
    "size": (
        {"img_h": "50", "img_w": "40"},
        r"line 3: image '0002\.jpg' is 40 x 50 pixels there, 48 x 48 in",
    ),
    "width": ({"features": encoded(np.zeros(9), "<f4")}, r"row 2 on \('0002\.jpg'\).*\(1, 9\).*width of 8"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_by_number_or_image(dataset, tmp_path, name):
    changes, message = BAD[name]
    lines = [line(dataset, row, **(changes if row == 2 else {})) for row in range(6)]
    source = read_tsv([tsv(tmp_path, lines)], dataset)
    with pytest.raises(DataError, match=message):
        write(source, dataset, tmp_path / "a.features", QUIET)


def test_files_of_another_kind_are_refused(dataset, tmp_path):
    path = tmp_path / "objects.tsv"
    path.write_text("0\t1\t2\n")
    with pytest.raises(DataError, match=r"line 1 has 3 fields.*img_id, img_h"):
        read_tsv([path], dataset)
    path.write_text("")
    with pytest.raises(DataError, match="is empty"):
        read_tsv([path], dataset)
    strange = tsv(tmp_path, [line(dataset, 0, img_id="elsewhere")])
    with pytest.raises(DataError, match=r"nothing of the images .*'elsewhere'.*'0000\.jpg'"):
        read_tsv([strange], dataset)
    twice = tsv(tmp_path, [line(dataset, 0), line(dataset, 1), line(dataset, 0)])
    with pytest.raises(
        DataError, match=r"line 3 is of image 'COCO_val2014_000000000000', and so is .*: line 1"
    ):
        read_tsv([twice], dataset)
    ambiguous = tsv(tmp_path, [line(dataset, 0, img_id="0"), line(dataset, 1, img_id="00")])
    with pytest.raises(DataError, match=r"'0000\.jpg' \(row 0\) may be '0' or '00'"):
        read_tsv([ambiguous], dataset)
    with pytest.raises(DataError, match="there is no file"):
        read_tsv([tmp_path / "absent.tsv"], dataset)


def test_ids_meet_over_suffix_prefix_and_zeros():
    assert short("000000391895.jpg") == short("COCO_val2014_000000391895") == short("391895") == "391895"
    assert short("a/1.jpg") == "a/1" != short("b/1.png") == "b/1"
    assert short("name.v2") == "name.v2"
