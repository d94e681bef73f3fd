"""What cannot be stored is refused with the image, its row and the value; what is harmless is mended."""

from dataclasses import replace

import numpy as np
import pytest

from dsvlp.data.features.checked import RowMaker, quantised
from dsvlp.data.features.rows import RegionRows
from dsvlp.data.manifest import Tally
from dsvlp.errors import DataError
from tests.data.features.regions_of_noise import CLASSES, WIDTH, regions_of
from tests.data.pictures_of_noise import make_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("checked"), "a", [1] * 8)


def three(dataset) -> RegionRows:
    """Images 4 to 6, of two, three and one objects."""
    return RegionRows.joined([regions_of(dataset, row, count) for row, count in ((4, 2), (5, 3), (6, 1))])


def make(dataset, rows: RegionRows, table=CLASSES, dtype="float16"):
    tally = Tally()
    maker = RowMaker(dataset, 3, WIDTH, dtype, table)
    return list(maker.make(4, rows, tally)), tally


def changed(rows: RegionRows, name: str, at, value) -> RegionRows:
    array = getattr(rows, name).copy()
    array[at] = value
    return replace(rows, **{name: array})


WHERE = r"image '0005\.jpg' \(row 5\): object 1 has "  # place 3 of the six objects

BAD = {
    "nan": (("features", (3, 2), np.nan), WHERE + r"a feature that is no finite number: nan"),
    "infinite": (("features", (3, 2), -np.inf), WHERE + r"a feature that is no finite number: -inf"),
    "overflow": (("features", (3, 5), 7e4), WHERE + r"a feature too large for float16: 70000\. .*65504"),
    "nan box": (("boxes_xyxy", (3, 1), np.nan), WHERE + r"a box: .*nan"),
    "box outside": (("boxes_xyxy", (3, 2), 50.5), WHERE + r"a box: .*50\.5.*picture of 48 x 48 pixels"),
    "box before": (("boxes_xyxy", (3, 0), -2), WHERE + r"a box: -2,"),
    "no area": (("boxes_xyxy", (3, slice(0, 4)), [9, 9, 9, 12]), WHERE + r"a box without area: 9, 9, 9, 12"),
    "inverted": (("boxes_xyxy", (3, slice(0, 4)), [20, 5, 10, 9]), WHERE + r"a box without area"),
    "class": (("labels", 3, 7), WHERE + r"the class: 7\. .*label table 'noise'"),
    "no class": (("labels", 3, -1), WHERE + r"the class: -1"),
    "confidence": (("confidences", 3, 1.5), WHERE + r"a confidence: 1\.5"),
    "nan confidence": (("confidences", 3, np.nan), WHERE + r"a confidence: nan"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_named_with_its_image(dataset, name):
    change, message = BAD[name]
    with pytest.raises(DataError, match=message):
        make(dataset, changed(three(dataset), *change))


def test_a_wrong_width_or_count_is_named(dataset):
    rows = three(dataset)
    with pytest.raises(DataError, match=r"row 4 on \('0004\.jpg'\).*\(6, 7\).*width of 8"):
        make(dataset, replace(rows, features=rows.features[:, :7]))
    with pytest.raises(DataError, match=r"5 boxes for 6 objects"):
        make(dataset, replace(rows, boxes_xyxy=rows.boxes_xyxy[:5]))
    with pytest.raises(DataError, match=r"4 features, .* for 6 objects|4 features for 6 objects"):
        make(dataset, replace(rows, features=rows.features[:4]))
    with pytest.raises(DataError, match=r"boxes of \(5,\) numbers"):
        make(dataset, replace(rows, boxes_xyxy=np.zeros((6, 5), np.float32)))


def test_a_box_a_pixel_too_large_is_clipped_and_counted(dataset):
    rows = changed(three(dataset), "boxes_xyxy", (3, slice(0, 4)), [-1, 2, 48.7, 40])
    made, tally = make(dataset, rows)
    np.testing.assert_allclose(made[1][1]["box"][1], [0, 2 / 48, 1, 40 / 48], rtol=1e-6)
    assert tally.counts["box clipped at the image's border"] == 1
    assert "0005.jpg" in tally.examples["box clipped at the image's border"][0]


def test_objects_need_no_class_where_there_is_no_table(dataset):
    rows = replace(three(dataset), labels=np.full(6, -1))
    made, _ = make(dataset, rows, table=None)
    assert (made[0][1]["label"] == -1).all()
    with pytest.raises(DataError, match=r"the class: 2.*there is no label table"):
        make(dataset, changed(rows, "labels", 3, 2), table=None)


def test_an_ignored_id_is_no_class(dataset):
    table = replace(CLASSES, ignore=0)
    made, _ = make(dataset, changed(three(dataset), "labels", 3, 0), table)
    assert made[1][1]["label"][1] == -1


@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
def test_quantised_features_come_back_within_half_a_step(scale):
    features = np.random.default_rng(0).standard_normal((5, 300)).astype(np.float32) * scale
    features[2] = 0
    steps, factor = quantised(features)
    assert steps.dtype == np.int8 and (factor == factor.astype(np.float16)).all()
    error = np.abs(steps * factor[:, None] - features)
    assert (error <= 0.505 * np.maximum(np.abs(features).max(1, keepdims=True) / 127, 2**-14)).all()
