"""What is read is what was written, to the last bit; and only beside the data set that it was written for."""

import gc
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dsvlp.data.dataset import Dataset
from dsvlp.data.features.layout import OBJECT
from dsvlp.data.features.rows import NO_CLASS, RegionRows
from dsvlp.data.features.stored import Features
from dsvlp.data.features.writer import write
from dsvlp.errors import DataError
from tests.data.features.regions_of_noise import CLASSES, QUIET, WIDTH, make_features, regions_of, source_of
from tests.data.pictures_of_noise import make_dataset

COUNTS = [4, 0, 1, 7, 4, 2, 9, 3, 4, 5, 1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("features"), "pictures", [1] * len(COUNTS), rows_per_shard=5)


@pytest.fixture(scope="module")
def dataset(pictures):
    return make_features(pictures, pictures.path.with_suffix(".features"), COUNTS)


def expected(dataset: Dataset, row: int, objects: int) -> RegionRows:
    """A row as a slow reader would choose it: the most confident, in their order."""
    given = regions_of(dataset, row, COUNTS[row])
    order = sorted(range(COUNTS[row]), key=lambda number: -given.confidences[number])[:objects]
    kept = sorted(order)
    columns = (given.features, given.boxes_xyxy, given.labels, given.confidences)
    return RegionRows(np.array([len(kept)]), *(column[kept] for column in columns))


@pytest.mark.parametrize("seed", range(5))
def test_random_rows_come_back_as_they_were_given(dataset, seed):
    rows = np.random.default_rng(seed).integers(0, dataset.images, 20)
    found = dataset.features.read(rows)
    assert found.features.dtype == np.float16 and found.features.shape == (20, 4, WIDTH)
    for place, row in enumerate(rows.tolist()):
        right = expected(dataset, row, 4)
        count = int(right.counts[0])
        assert found.mask[place].tolist() == [True] * count + [False] * (4 - count)
        np.testing.assert_array_equal(found.features[place, :count], right.features.astype(np.float16))
        height, width = dataset.sizes(np.array([row]))[0]
        np.testing.assert_allclose(
            found.boxes[place, :count] * [width, height, width, height], right.boxes_xyxy, atol=1e-4
        )
        classes = [CLASSES.ids[label] for label in found.labels[place, :count]]
        assert classes == right.labels.tolist()
        np.testing.assert_array_equal(found.confidences[place, :count], right.confidences)
        assert not found.features[place, count:].any() and not found.boxes[place, count:].any()
        assert (found.labels[place, count:] == NO_CLASS).all()


def test_what_is_told_of_objects_needs_no_feature(dataset):
    rows = np.array([6, 0, 1])
    about, found = dataset.features.about(rows), dataset.features.read(rows)
    np.testing.assert_array_equal(about["box"], found.boxes)
    np.testing.assert_array_equal(about["is_object"] != 0, found.mask)


def test_int8_is_within_half_a_step_of_each_objects_largest_value(pictures, tmp_path):
    dataset = make_features(pictures, tmp_path / "small.features", COUNTS, dtype="int8")
    found = dataset.features.read(np.arange(dataset.images))
    for row in range(dataset.images):
        right = expected(dataset, row, 4).features
        step = np.abs(right).max(1, keepdims=True, initial=0) / 127
        error = np.abs(found.features[row, : len(right)].astype(np.float32) - right)
        assert (error <= 0.5 * step + 2**-10 * np.abs(right) + 1e-4).all()
    large = make_features(pictures, tmp_path / "large.features", COUNTS, width=64)
    assert dataset.features.manifest.dtype == "int8" and large.features.manifest.dtype == "float16"


def test_the_counts_of_what_was_mended_stand_in_the_manifest(dataset):
    counts = dataset.features.manifest.adjusted.counts
    assert counts == {
        "image without objects": COUNTS.count(0),
        "image with fewer objects": sum(0 < count < 4 for count in COUNTS),
        "image with more objects": sum(count > 4 for count in COUNTS),
    }


def test_features_of_another_data_set_are_refused_and_both_are_named(dataset, tmp_path):
    other = make_dataset(tmp_path, "other", [1] * len(COUNTS), seed=5)
    with pytest.raises(DataError, match=r"of pictures\.beton .*not of .*other\.beton"):
        Features.open(dataset.features.path, other)
    with pytest.raises(DataError, match="no region features"):
        Dataset.open(other.path, features=tmp_path / "absent.features")
    with pytest.raises(DataError, match="region features written by"):
        Dataset.open(other.path, features=other.path)


def copy_of(dataset: Dataset, folder) -> Features:
    write(source_of(dataset, COUNTS), dataset, folder, QUIET)
    return Features.open(folder, dataset)


def test_a_flipped_bit_is_named_by_file_and_block(pictures, tmp_path):
    features = copy_of(pictures, tmp_path / "a.features")
    path = features.path / "features-00001.beton"
    content = bytearray(path.read_bytes())
    content[1 << 21] ^= 1
    path.write_bytes(bytes(content))
    Features.open(features.path, pictures)  # "quick" reads no block
    with pytest.raises(DataError, match=r"features-00001\.beton: block 0 of 64 MiB is damaged"):
        Features.open(features.path, pictures, "full")


@pytest.mark.parametrize("how", ["cut", "absent", "manifest"])
def test_a_damaged_folder_is_refused_at_once(pictures, tmp_path, how):
    features = copy_of(pictures, tmp_path / "a.features")
    path = features.path / ("manifest.json" if how == "manifest" else "features-00000.beton")
    if how == "absent":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-24] if how == "cut" else data.replace(b'"objects": 4', b'"objects": 5'))
    with pytest.raises(DataError, match=path.name):
        Features.open(features.path, pictures)


def test_a_manifest_that_lies_about_the_rows_size_is_refused(pictures, tmp_path):
    features = copy_of(pictures, tmp_path / "a.features")
    with pytest.raises(DataError, match=r"row 0 has 64 bytes of features.*80"):
        Features(features.path, replace(features.manifest, objects=5))


def test_one_of_its_threads_reads_like_the_other(dataset):
    rows = [np.random.default_rng(seed).integers(0, dataset.images, 30) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(dataset.features.read, rows))
    for own, found in zip(rows, together, strict=True):
        np.testing.assert_array_equal(dataset.features.read(own).features, found.features)


def mapped_files(folder: Path) -> Counter[str]:
    """Returns how often this process has each file of a folder mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return Counter(Path(line.split()[-1]).name for line in lines if f"{folder}/" in line)


def test_however_many_shards_there_are_only_the_last_used_stay_mapped(pictures, dataset, tmp_path):
    made = make_features(pictures, tmp_path / "many.features", COUNTS, rows_per_shard=1).features
    assert len(made.manifest.shard_rows) == len(COUNTS) and not mapped_files(made.path), "opening holds none"
    features = Features(made.path, made.manifest, open_shards=3)
    rows = [np.random.default_rng(seed).integers(0, len(COUNTS), 40) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(features.read, rows))
    for own, found in zip(rows, together, strict=True):
        np.testing.assert_array_equal(found.features, dataset.features.read(own).features)
    features.read(np.array([9, 4, 7, 4, 2, 7]))
    gc.collect()
    assert mapped_files(made.path).keys() == {f"features-{number:05d}.beton" for number in (4, 2, 7)}


def test_a_shard_that_vanished_since_it_was_checked_is_named(pictures, tmp_path):
    features = copy_of(pictures, tmp_path / "a.features")
    (features.path / "features-00001.beton").unlink()
    features.read(np.arange(4))
    with pytest.raises(DataError, match=r"features-00001\.beton cannot be opened.*when this run began"):
        features.read(np.arange(5))


def test_a_shard_that_was_replaced_since_it_was_checked_is_refused(pictures, tmp_path):
    features = copy_of(pictures, tmp_path / "a.features")
    shard = features.path / "features-00001.beton"
    shard.with_suffix(".new").write_bytes(shard.read_bytes())
    shard.with_suffix(".new").rename(shard)
    with pytest.raises(DataError, match=r"cannot be opened: it has been replaced.*that it began with"):
        features.read(np.arange(5))


def test_a_read_costs_hardly_more_than_a_plain_copy_of_the_same_bytes(tmp_path):
    """In time of this thread on a core, for rows of 100 x 2048: what is waited for others does not count."""
    pictures = make_dataset(tmp_path, "large", [1] * 12)
    counts, rows = [100] * 12, np.arange(12)
    features = make_features(pictures, tmp_path / "large.features", counts, objects=100, width=2048).features
    np.save(tmp_path / "plain.npy", features.read(rows).features)
    plain = np.load(tmp_path / "plain.npy", mmap_mode="r")
    out, about = np.empty(plain.shape, np.float16), np.empty((12, 100), OBJECT)

    def copy(row):
        out[row] = plain[row]

    def read(row):
        features.read_into(row, out[row], about[row])

    def seconds(work):
        begin = time.thread_time()
        for row in rows.tolist():
            work(row)
        return time.thread_time() - begin

    pairs = [(seconds(copy), seconds(read)) for _ in range(20)]
    copied, was_read = (min(column) for column in zip(*pairs, strict=True))
    assert was_read < 2 * copied, f"{out.nbytes / was_read / 1e9:.1f} of {out.nbytes / copied / 1e9:.1f} GB/s"
