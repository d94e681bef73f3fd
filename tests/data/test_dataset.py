"""Opening a data set: every damage is found and named before anything is read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dsvlp.data import check
from dsvlp.data.dataset import Dataset
from dsvlp.data.fields import ROW
from dsvlp.data.manifest import Manifest, digest
from dsvlp.data.shard import check_shard
from dsvlp.data.writer import Options, write
from dsvlp.errors import DataError, DsvlpError
from tests.data.raw_files import make_pictures, reader


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    paths = make_pictures(folder / "p", 12)
    write(reader(paths), folder / "a.beton", Options(1, rows_per_shard=7, progress=False))
    return folder / "a.beton"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "a.beton")
    return tmp_path / "a.beton"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["rows-00000.beton", "rows-00001.beton", "texts.bin", "samples.npy", "hashes.npy"]
)
def test_a_flipped_bit_is_named_by_file_and_block(copy: Path, name: str) -> None:
    flip(copy / name, (copy / name).stat().st_size // 2)
    with pytest.raises(DataError, match=rf"{name}: block 0"):
        Dataset.open(copy)


@pytest.mark.parametrize("verify", ["quick", "full"])
def test_a_cut_or_absent_file_is_found_even_by_the_quick_check(
    whole: Path, tmp_path: Path, verify: str
) -> None:
    names = [path.name for path in whole.iterdir()]
    assert len(names) == 10
    for name in names:
        for cut in (True, False):
            folder = tmp_path / f"{name}-{cut}.beton"
            shutil.copytree(whole, folder)
            data = (folder / name).read_bytes()
            (folder / name).unlink()
            if cut:
                (folder / name).write_bytes(data[:-1])
            with pytest.raises(DataError, match=name.replace(".", r"\.")):
                Dataset.open(folder, verify)  # type: ignore[arg-type]
            shutil.rmtree(folder)


@pytest.mark.parametrize("lost", [24, 1, 48 * 3])
def test_a_cut_allocation_table_is_found_without_the_manifest(copy: Path, lost: int) -> None:
    """FFCV accepts it and reads wrong samples."""
    path = copy / "rows-00000.beton"
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(DataError, match="allocation table"):
        check_shard(path, 7)


def test_a_pointer_outside_the_file_is_found_without_the_manifest(copy: Path) -> None:
    path = copy / "rows-00000.beton"
    metadata = check_shard(path, 7)
    for value in (2**63, 2**40, 0):
        data = np.fromfile(path, np.uint8)
        pointers = np.frombuffer(data[metadata.offset :][: metadata.nbytes], metadata.dtype).copy()
        pointers[metadata.dtype.names[0]]["ptr"][3] = value
        data[metadata.offset :][: metadata.nbytes] = pointers.view(np.uint8)
        (copy / "x.beton").write_bytes(data.tobytes())
        with pytest.raises(DataError, match="pointer"):
            check_shard(copy / "x.beton", 7)


def test_an_edited_manifest_is_refused(copy: Path) -> None:
    path = copy / "manifest.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "samples": value["samples"] - 1}))
    with pytest.raises(DataError, match="digest"):
        Dataset.open(copy, "quick")
    path.write_text("{")
    with pytest.raises(DataError, match="damaged"):
        Dataset.open(copy, "quick")
    path.write_text(json.dumps({**value, "format": 99}))
    with pytest.raises(DataError, match="format 99"):
        Dataset.open(copy, "quick")
    del value["texts"], value["digest"]
    path.write_text(json.dumps({**value, "digest": digest(value)}))
    with pytest.raises(DataError, match="texts"):
        Dataset.open(copy, "quick")


def test_a_manifest_comes_back_from_json(whole: Path) -> None:
    manifest = Dataset.open(whole).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.row_fields == tuple(ROW)


def test_any_damage_is_found_or_harmless(whole: Path, tmp_path: Path) -> None:
    """A seeded fuzz: each damaged copy is refused by a DsvlpError, or it is bytes that nobody reads."""
    rng = np.random.default_rng(4)
    names = sorted(path.name for path in whole.iterdir())
    right = [vars(stored) for stored in check.rows(Dataset.open(whole))]
    folder = tmp_path / "a.beton"
    shutil.copytree(whole, folder)
    refused = 0
    for _ in range(60):
        name = names[rng.integers(len(names))]
        data = bytearray((whole / name).read_bytes())
        kind = rng.integers(3)
        at = int(rng.integers(len(data)))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[at:]
        else:
            data[at : at + 8] = rng.bytes(8)
        (folder / name).write_bytes(data)
        try:
            found = [vars(stored) for stored in check.rows(Dataset.open(folder))]
        except DsvlpError:
            refused += 1
        else:
            assert str(found) == str(right)
        shutil.copy(whole / name, folder / name)
    assert refused >= 55


def test_the_quick_check_and_reading_never_crash_on_damage(whole: Path, tmp_path: Path) -> None:
    """Without hashes wrong values may pass, but only as values or as a DsvlpError."""
    rng = np.random.default_rng(5)
    folder = tmp_path / "a.beton"
    shutil.copytree(whole, folder)
    names = [n for n in sorted(p.name for p in whole.iterdir()) if not n.startswith("rows")]
    for _ in range(80):
        name = names[rng.integers(len(names))]
        data = bytearray((whole / name).read_bytes())
        at = int(rng.integers(len(data)))
        data[at : at + 2] = rng.bytes(len(data[at : at + 2]))
        (folder / name).write_bytes(data)
        try:
            dataset = Dataset.open(folder, "quick")
            dataset.texts(range(dataset.samples_count))
            assert [dataset.image_id(row) for row in range(dataset.images)]
        except DsvlpError as error:
            assert str(folder) in str(error)
        shutil.copy(whole / name, folder / name)


def test_no_data_set_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no data set"):
        Dataset.open(tmp_path / "none.beton")
    (tmp_path / "empty.beton").mkdir()
    with pytest.raises(DataError, match="manifest"):
        Dataset.open(tmp_path / "empty.beton")
