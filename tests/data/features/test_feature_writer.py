"""Writing features: restartable by shard, all or nothing, and never of half the images by mistake."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dsvlp.data.dataset import Dataset
from dsvlp.data.features.rows import RegionSource
from dsvlp.data.features.writer import FeatureWriter, write
from dsvlp.errors import DataError
from tests.data.features.regions_of_noise import QUIET, regions_of, source_of
from tests.data.pictures_of_noise import make_dataset
from tests.data.raw_files import files_of

COUNTS = [3, 5, 0, 4, 2, 4, 1, 6, 4, 4]  # shards of 4, 4 and 2 images


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("writer"), "a", [1] * len(COUNTS))


@pytest.fixture(scope="module")
def whole(dataset):
    out = dataset.path.with_name("whole.features")
    write(source_of(dataset, COUNTS), dataset, out, QUIET)
    return out


def in_chunks(source: RegionSource, dataset: Dataset, size: int) -> RegionSource:
    """The same regions in chunks of `size` images, which lie across the shards."""

    def rows(first):
        for begin in range(first, dataset.images, size):
            some = range(begin, min(begin + size, dataset.images))
            parts = [regions_of(dataset, row, COUNTS[row]) for row in some]
            yield type(parts[0]).joined(parts)

    return replace(source, rows=rows)


@pytest.mark.parametrize("size", [3, 7, 100])
def test_the_size_of_chunks_does_not_change_a_byte(dataset, whole, tmp_path, size):
    source = in_chunks(source_of(dataset, COUNTS), dataset, size)
    write(source, dataset, tmp_path / "b.features", QUIET)
    assert files_of(tmp_path / "b.features") == files_of(whole)


def test_an_error_in_mid_shard_loses_that_shard_alone(dataset, whole, tmp_path):
    asked = []

    def breaks(at):
        def rows(first):
            asked.append(first)
            for row in range(first, dataset.images):
                if row == at:
                    raise DataError("the detector is tired")
                yield regions_of(dataset, row, COUNTS[row])

        return replace(source_of(dataset, COUNTS), rows=rows)

    for at in (6, 9, None):
        try:
            write(breaks(at), dataset, tmp_path / "b.features", QUIET)
        except DataError as error:
            assert "tired" in str(error) and not (tmp_path / "b.features").exists()
    assert asked == [0, 4, 8]
    assert files_of(tmp_path / "b.features") == files_of(whole)


SLOW = """
import sys, time
from dataclasses import replace
from pathlib import Path
from dsvlp.data.dataset import Dataset
from dsvlp.data.features.writer import write
from tests.data.features.regions_of_noise import QUIET, source_of
from tests.data.features.test_feature_writer import COUNTS

dataset = Dataset.open(sys.argv[1])
source = source_of(dataset, COUNTS)

def rows(first):
    for number, row in enumerate(source.rows(first), first):
        if number == 6:
            print("half", flush=True)
            time.sleep(60)
        yield row

write(replace(source, rows=rows), dataset, Path(sys.argv[2]), QUIET)
"""


def test_a_kill_in_mid_write_loses_one_shard_and_the_rest_is_equal_to_the_byte(dataset, whole, tmp_path):
    out = tmp_path / "b.features"
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(dataset.path), str(out)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert not out.exists()
    with FeatureWriter(source_of(dataset, COUNTS), dataset, out, QUIET) as writer:
        assert writer.next_row == 4
    write(source_of(dataset, COUNTS), dataset, out, QUIET)
    assert files_of(out) == files_of(whole)


def test_a_finished_shard_that_was_cut_is_written_again(dataset, whole, tmp_path):
    out = tmp_path / "b.features"
    with FeatureWriter(source_of(dataset, COUNTS), dataset, out, QUIET) as writer:
        for row in range(9):
            writer.write(row, regions_of(dataset, row, COUNTS[row]))
    shard = tmp_path / ".b.features.partial" / "features-00001.beton"
    shard.write_bytes(shard.read_bytes()[:-1])
    with FeatureWriter(source_of(dataset, COUNTS), dataset, out, QUIET) as writer:
        assert writer.next_row == 4
        for row in range(4, 10):
            writer.write(row, regions_of(dataset, row, COUNTS[row]))
        writer.finish()
    assert files_of(out) == files_of(whole)


def test_other_arguments_do_not_go_on_with_what_stands_there(dataset, tmp_path):
    out = tmp_path / "b.features"
    with FeatureWriter(source_of(dataset, COUNTS), dataset, out, QUIET):
        pass
    with pytest.raises(DataError, match=r"other arguments: .*seed: 0 -> 1"):
        write(source_of(dataset, COUNTS, seed=1), dataset, out, QUIET)
    with pytest.raises(DataError, match=r"objects: 4 -> 5"):
        write(source_of(dataset, COUNTS), dataset, out, replace(QUIET, objects=5))


def test_complete_features_stay_without_force(dataset, whole):
    before = time.time_ns()
    with pytest.raises(DataError, match="--force"):
        write(source_of(dataset, COUNTS), dataset, whole, QUIET)
    assert all(path.stat().st_mtime_ns < before for path in whole.iterdir())


def test_a_name_without_the_suffix_is_refused(dataset, tmp_path):
    with pytest.raises(DataError, match=r"ends in \.features"):
        write(source_of(dataset, COUNTS), dataset, tmp_path / "b", QUIET)


def test_a_source_that_ends_too_early_or_too_late_is_refused(dataset, tmp_path):
    source = source_of(dataset, COUNTS)
    short = replace(source, rows=lambda first: list(source.rows(first))[:-2])
    with pytest.raises(DataError, match=r"gives regions of 8 images\. Expected 10"):
        write(short, dataset, tmp_path / "b.features", QUIET)
    long = replace(source, rows=lambda first: [*source.rows(first), regions_of(dataset, 9, 1)])
    with pytest.raises(DataError, match=r"gives regions of 11 images\. Expected 10"):
        write(long, dataset, tmp_path / "c.features", QUIET)


def test_images_that_the_source_lacks_are_named_and_may_be_allowed(dataset, tmp_path):
    lacking = replace(source_of(dataset, COUNTS), missing=("0002.jpg",))
    with pytest.raises(DataError, match=r"nothing of 1 of 10 images .*0002\.jpg.*--max-missing"):
        write(lacking, dataset, tmp_path / "b.features", QUIET)
    allowed = write(lacking, dataset, tmp_path / "b.features", replace(QUIET, max_missing=0.1))
    assert allowed.adjusted.examples["image without objects"] == ["0002.jpg: 0"]
