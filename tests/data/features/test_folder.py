"""A folder of files for each image, in three forms that hold the same."""

import os
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from safetensors.numpy import save_file

from dsvlp.data.dataset import Dataset
from dsvlp.data.features.folder import read_folder
from dsvlp.data.features.rows import NO_CLASS
from dsvlp.data.features.stored import Features
from dsvlp.data.features.writer import write
from dsvlp.errors import DataError
from tests.data.features.regions_of_noise import QUIET, WIDTH, regions_of
from tests.data.pictures_of_noise import make_dataset

COUNTS = [3, 5, 1, 4]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("folder"), "a", [1] * len(COUNTS))


def arrays(dataset: Dataset, row: int) -> dict[str, np.ndarray]:
    regions = regions_of(dataset, row, COUNTS[row])
    return {
        "features": regions.features,
        "boxes": regions.boxes_xyxy,
        "labels": regions.labels % 3,
        "confidences": regions.confidences,
    }


def fill(folder, dataset: Dataset, kind: str, leave_out: tuple[str, ...] = ()) -> None:
    folder.mkdir(exist_ok=True)
    for row in range(dataset.images):
        values = {name: array for name, array in arrays(dataset, row).items() if name not in leave_out}
        if kind == "npz":
            np.savez(folder / f"{row:04d}.npz", **values)
        elif kind == "safetensors":
            save_file(values, folder / f"{row:04d}.safetensors")
        else:
            for name, array in values.items():
                (folder / name).mkdir(exist_ok=True)
                np.save(folder / name / f"{row:04d}.npy", array)
    if "labels" not in leave_out:
        (folder / "classes.txt").write_text("cat\ndog\nhat\n")


@pytest.mark.parametrize("kind", ["npz", "safetensors", "npy"])
def test_every_form_gives_the_same_regions(dataset, tmp_path, kind):
    fill(tmp_path / "raw", dataset, kind)
    source = read_folder(tmp_path / "raw", dataset)
    assert source.width == WIDTH and source.table.names == ("cat", "dog", "hat") and not source.missing
    write(source, dataset, tmp_path / "a.features", replace(QUIET, objects=5))
    found = Features.open(tmp_path / "a.features", dataset).read(np.arange(dataset.images))
    for row in range(dataset.images):
        right, count = arrays(dataset, row), COUNTS[row]
        np.testing.assert_array_equal(found.features[row, :count], right["features"].astype(np.float16))
        np.testing.assert_array_equal(found.labels[row, :count], right["labels"])
        np.testing.assert_array_equal(found.confidences[row, :count], right["confidences"])
        assert found.mask[row].sum() == count


@pytest.mark.parametrize("row", [0, 2])
def test_a_file_of_no_objects_is_an_image_without_objects(dataset, tmp_path, row):
    fill(tmp_path / "raw", dataset, "npz")
    empty = {name: array[:0] for name, array in arrays(dataset, row).items()}
    np.savez(tmp_path / "raw" / f"{row:04d}.npz", **empty | {"features": np.zeros((0, 0), np.float32)})
    source = read_folder(tmp_path / "raw", dataset)
    write(source, dataset, tmp_path / "a.features", replace(QUIET, objects=5))
    found = Features.open(tmp_path / "a.features", dataset).read(np.arange(dataset.images))
    assert source.width == WIDTH and [not mask.any() for mask in found.mask] == [n == row for n in range(4)]


def test_without_labels_and_confidences_objects_have_no_class_and_are_certain(dataset, tmp_path):
    fill(tmp_path / "raw", dataset, "npz", ("labels", "confidences"))
    source = read_folder(tmp_path / "raw", dataset)
    rows = next(source.rows(1))
    assert source.table is None and (rows.labels == NO_CLASS).all() and (rows.confidences == 1).all()


BAD = {
    "no boxes": ({"boxes": None}, r"0001\.npz holds \['confidences', 'features', 'labels'\]"),
    "boxes": ({"boxes": np.zeros((5, 3), np.float32)}, r"0001\.npz: boxes have the shape \(5, 3\)"),
    "integers": ({"features": np.zeros((5, 8), int)}, r"0001\.npz: features are int64"),
    "labels": ({"labels": np.zeros(5, np.float32)}, r"0001\.npz: labels are float32 \(5,\)"),
    "pickle": ({"features": np.array([{}] * 5)}, r"0001\.npz cannot be read"),
    "width": ({"features": np.zeros((5, 7), np.float32)}, r"row 1 on .*\(5, 7\).*width of 8"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named(dataset, tmp_path, name):
    changes, message = BAD[name]
    fill(tmp_path / "raw", dataset, "npz")
    values = {key: value for key, value in (arrays(dataset, 1) | changes).items() if value is not None}
    np.savez(tmp_path / "raw" / "0001.npz", **values)
    with pytest.raises(DataError, match=message):
        write(read_folder(tmp_path / "raw", dataset), dataset, tmp_path / "a.features", QUIET)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "npy"])
def test_an_interrupted_writing_goes_on_with_the_same_files_alone(dataset, tmp_path, kind):
    raw, out = tmp_path / "raw", tmp_path / "a.features"
    fill(raw, dataset, kind)
    source = read_folder(raw, dataset)
    first_row = replace(source, rows=lambda first: islice(source.rows(first), 1))
    with pytest.raises(DataError, match="gives regions of 1 images"):
        write(first_row, dataset, out, QUIET)
    changed = raw / ("labels/0003.npy" if kind == "npy" else f"0003.{kind}")
    before = changed.stat().st_mtime_ns
    os.utime(changed, ns=(0, 0))
    with pytest.raises(DataError, match="other arguments: state"):
        write(read_folder(raw, dataset), dataset, out, QUIET)
    os.utime(changed, ns=(0, before))
    assert write(read_folder(raw, dataset), dataset, out, QUIET).images == dataset.images


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_cut_file_is_named(dataset, tmp_path, kind):
    fill(tmp_path / "raw", dataset, kind)
    path = tmp_path / "raw" / f"0002.{kind}"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=f"0002.{kind} cannot be read"):
        write(read_folder(tmp_path / "raw", dataset), dataset, tmp_path / "a.features", QUIET)


def test_labels_without_names_an_empty_folder_and_two_files_of_one_image_are_refused(dataset, tmp_path):
    fill(tmp_path / "raw", dataset, "npz")
    (tmp_path / "raw" / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"has labels, but there is no classes\.txt"):
        read_folder(tmp_path / "raw", dataset)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no features"):
        read_folder(tmp_path / "empty", dataset)
    fill(tmp_path / "raw", dataset, "safetensors")
    with pytest.raises(DataError, match=r"has 0000\.npz and 0000\.safetensors"):
        read_folder(tmp_path / "raw", dataset)
