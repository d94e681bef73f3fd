import shutil

import pytest

from dsvlp.data import manifest, staged
from dsvlp.data.dataset import Dataset
from dsvlp.data.staged import STAGED, copy_of, nearest
from dsvlp.launch import staging
from tests.data.features.regions_of_noise import make_features
from tests.data.pictures_of_noise import make_dataset


@pytest.fixture(autouse=True)
def no_setup(monkeypatch):
    """Leaves the log to pytest."""
    monkeypatch.setattr(staging.logs, "setup", lambda rank: None)


@pytest.fixture
def source(tmp_path):
    """Returns a data set of two files and a vocabulary, as far as staging looks."""
    folder = tmp_path / "X.beton"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    for name, size in (("rows-00000.beton", 5000), ("samples.npy", 100)):
        (folder / name).write_bytes(bytes(range(250)) * (size // 250 + 1))
    records = {name: manifest.record(folder / name) for name in ("rows-00000.beton", "samples.npy")}
    nothing = manifest.Tally()
    manifest.Manifest("x", "x", 0, 0, 0, (), (), 0, 0, (), None, None, nothing, nothing, records).save(folder)
    return folder


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_is_whole_and_found_and_goes_away(source, tmp_path):
    local = tmp_path / "node" / "job-7"
    assert staging.main(["copy", str(local), str(source)]) == 0
    copy = copy_of(source, local)
    assert content(copy) == content(source)
    assert nearest(source, {STAGED: str(local)}) == copy
    assert staging.stage(source, local) == copy, "twice costs nothing"
    staging.main(["remove", str(local)])
    assert not local.exists() and nearest(source, {STAGED: str(local)}) == source
    assert nearest(source, {}) == source


def test_data_sets_of_one_name_do_not_meet(tmp_path):
    assert copy_of(tmp_path / "a" / "X.beton", tmp_path) != copy_of(tmp_path / "b" / "X.beton", tmp_path)


def test_where_a_disk_is_too_small_the_original_is_read_and_that_is_said(
    source, tmp_path, monkeypatch, caplog
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage._replace(free=usage.total // 50))
    assert staging.stage(source, tmp_path / "node") is None
    assert "GB free" in caplog.text and "read where it is" in caplog.text
    assert not copy_of(source, tmp_path / "node").exists()


@pytest.mark.parametrize("when", ["full", "flipped"])
def test_a_copy_that_fails_or_is_not_the_same_leaves_nothing(source, tmp_path, monkeypatch, caplog, when):
    copytree = shutil.copytree

    def broken(origin, target, *rest, **named):
        copytree(origin, target, *rest, **named)
        if rest:  # a folder inside
            return
        if when == "full":
            raise OSError(28, "No space left on device")
        data = bytearray((target / "rows-00000.beton").read_bytes())
        data[1000] ^= 1
        (target / "rows-00000.beton").write_bytes(data)

    monkeypatch.setattr(staging.shutil, "copytree", broken)
    assert staging.stage(source, tmp_path / "node") is None
    assert "could not be staged" in caplog.text
    assert not list((tmp_path / "node").iterdir())
    assert nearest(source, {STAGED: str(tmp_path / "node")}) == source


def test_a_killed_copy_is_not_taken_for_a_whole_one(source, tmp_path):
    local = tmp_path / "node"
    partial = copy_of(source, local).with_name(f".{copy_of(source, local).name}.partial")
    shutil.copytree(source, partial)
    assert nearest(source, {STAGED: str(local)}) == source
    assert staging.stage(source, local) == copy_of(source, local)
    assert not partial.exists()


def test_what_is_no_data_set_is_left_to_who_reads_it(tmp_path, caplog):
    assert staging.main(["copy", str(tmp_path / "node"), str(tmp_path / "absent.beton")]) == 0
    assert "is not staged" in caplog.text


def test_staging_and_its_lookup_need_no_torch():
    assert "torch" not in vars(staging) and "torch" not in vars(staged)


def test_region_features_are_staged_beside_their_data_set(tmp_path):
    dataset = make_dataset(tmp_path, "noise", [1] * 5)
    features = make_features(dataset, tmp_path / "noise.features").features.path
    node = tmp_path / "node"
    assert staging.main(["copy", str(node), str(dataset.path), str(features)]) == 0
    near = [nearest(path, {STAGED: str(node)}) for path in (dataset.path, features)]
    assert all(path.parent == node for path in near)
    assert content(near[1]) == content(features)
    assert Dataset.open(near[0], features=near[1]).features.manifest.images == 5
