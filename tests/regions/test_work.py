"""Making features: any number of processes and ranks, killed and gone on with, come to the same."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

import dsvlp.vision  # noqa: F401  # isort: skip
import timm

from dsvlp.data.dataset import Dataset
from dsvlp.data.features.rows import Regions
from dsvlp.data.features.stored import Features
from dsvlp.data.features.writer import Options
from dsvlp.errors import DataError, RunError
from dsvlp.regions import work
from dsvlp.regions.backbone import Sizes
from dsvlp.regions.parts import Parts
from dsvlp.regions.work import Crew, Settings, make_features
from tests.engine.processes import environment
from tests.regions.pictures import CLASSES, random_detr, small_data

GRID = Settings("grid", None, "resnet18", "random", 4, Sizes(64, 96))
OPTIONS = Options(objects=4, progress=False)
ALONE = Crew(batch=4, workers=0, progress=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("work"), 70)


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "x.features"
    make_features(dataset.path, out, GRID, ALONE, OPTIONS)
    return read(out, dataset)


def read(out: Path, dataset: Dataset) -> Regions:
    return Features.open(out, dataset, "full").read(np.arange(dataset.images))


def assert_same(found: Regions, expected: Regions) -> None:
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-2, atol=1e-4)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.mask, expected.mask)


def test_the_manifest_says_what_made_them_and_nothing_else_stays(dataset, tmp_path):
    outcome = make_features(dataset.path, tmp_path / "x.features", GRID, ALONE, OPTIONS)
    manifest = outcome.manifest
    assert manifest is not None and outcome.images == 70 and outcome.seconds > 0
    assert (manifest.images, manifest.objects, manifest.width) == (70, 4, 512)
    assert (manifest.detector, manifest.backbone) == ("grid boxes", "resnet18, weights random")
    assert [path.name for path in tmp_path.iterdir()] == ["x.features"]
    with pytest.raises(DataError, match=r"exists.*--force"):
        make_features(dataset.path, tmp_path / "x.features", GRID, ALONE, OPTIONS)


def test_ranks_that_do_not_know_of_each_other_come_to_the_same(dataset, whole, tmp_path):
    """In any order; the last one joins."""
    out = tmp_path / "x.features"
    crews = [replace(ALONE, rank=rank, world=3) for rank in (2, 0, 1)]
    outcomes = [make_features(dataset.path, out, GRID, crew, OPTIONS) for crew in crews]
    assert [outcome.manifest is None for outcome in outcomes] == [True, True, False]
    assert sum(outcome.images for outcome in outcomes) == 70
    assert_same(read(out, dataset), whole)


def test_a_detectors_objects_are_stored_with_its_classes(dataset, tmp_path):
    detector = random_detr(tmp_path / "detr")
    settings = replace(GRID, boxes="detector", detector=str(detector))
    outcome = make_features(dataset.path, tmp_path / "x.features", settings, ALONE, OPTIONS)
    assert outcome.manifest is not None and outcome.manifest.table is not None
    assert outcome.manifest.table.names == CLASSES and outcome.manifest.detector == str(detector)
    found = read(tmp_path / "x.features", dataset)
    assert found.mask.all() and (np.diff(found.confidences, axis=1) <= 0).all(), "by falling confidence"
    assert ((found.boxes[..., 2:] > found.boxes[..., :2]) & (found.boxes >= 0)[..., :2]).all()
    assert len(np.unique(found.features[:, 0], axis=0)) > 60, "pictures differ"


SCRIPT = """
from pathlib import Path
from dsvlp.data.features.writer import Options
from dsvlp.regions.backbone import Sizes
from dsvlp.regions.work import Crew, Settings, make_features
if __name__ == "__main__":
    settings = Settings("grid", None, "resnet18", "random", 4, Sizes(64, 96))
    crew = Crew(batch=1, workers=0, progress=False)
    make_features(Path({data!r}), Path({out!r}), settings, crew, Options(objects=4, progress=False))
"""


@pytest.mark.slow
def test_killed_it_goes_on_with_the_parts_that_are_made_on_more_processes(dataset, whole, tmp_path):
    script, out = tmp_path / "run.py", tmp_path / "x.features"
    script.write_text(SCRIPT.format(data=str(dataset.path), out=str(out)))
    parts = tmp_path / ".x.features.parts"
    process = subprocess.Popen([sys.executable, str(script)], env=environment(tmp_path))
    end = time.monotonic() + 400
    while not list(parts.glob("part-*.safetensors")) and process.poll() is None:
        assert time.monotonic() < end, "no part is made"
        time.sleep(0.002)
    process.kill()
    process.wait(30)
    assert not out.exists(), "it was faster than the signal: make more pictures"
    made = len(list(parts.glob("part-*.safetensors")))
    outcome = make_features(dataset.path, out, GRID, replace(ALONE, processes=2), OPTIONS)
    assert made and outcome.images == 70 - 16 * made, "finished parts are not made again"
    assert_same(read(out, dataset), whole)


RANK = """
import json, sys, time
from dataclasses import asdict
from pathlib import Path
from dsvlp.data.features.writer import Options
from dsvlp.regions.backbone import Sizes
from dsvlp.regions.work import Crew, Settings, make_features
if __name__ == "__main__":
    rank, rounds, data, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    settings = Settings("grid", None, "resnet18", "random", 4, Sizes(64, 64))
    for number in range(rounds):
        folder = out / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rank-{rank}").touch()  # a round begins for all at once
        while len(list(folder.glob("rank-*"))) < 3:
            time.sleep(0.001)
        if rank == 2 and number == rounds - 1:  # long after the others
            while not (folder / "x.features").exists():
                time.sleep(0.01)
        else:
            time.sleep((rank * 7 + number * 5) % 6 * 0.02)
        crew = Crew(rank=rank, world=3, batch=8, workers=0, progress=False)
        outcome = make_features(data, folder / "x.features", settings, crew, Options(4, progress=False))
        told = {"images": outcome.images, "written": outcome.manifest is not None}
        (folder / f"told-{rank}").write_text(json.dumps(told))
"""


@pytest.mark.slow
def test_ranks_that_begin_and_end_at_any_time_finish_quietly_and_come_to_the_same(tmp_path):
    """Of 20 images there are two parts: the third rank has none, and may come when all is done."""
    data, rounds = small_data(tmp_path, 20), 6
    (tmp_path / "rank.py").write_text(RANK)
    words = [sys.executable, str(tmp_path / "rank.py")]
    ranks = [
        subprocess.Popen(
            [*words, str(rank), str(rounds), str(data.path), str(tmp_path / "out")], env=environment(tmp_path)
        )
        for rank in range(3)
    ]
    end = time.monotonic() + 400
    try:
        while any(process.poll() is None for process in ranks):
            assert not any(process.poll() for process in ranks), "a rank failed: its error stands above"
            assert time.monotonic() < end, "the ranks wait for each other"
            time.sleep(0.05)
    finally:
        for process in ranks:
            process.kill()
            process.wait(30)
    assert [process.returncode for process in ranks] == [0, 0, 0]
    first = read(tmp_path / "out" / "0" / "x.features", data)
    for folder in (tmp_path / "out").iterdir():
        assert_same(read(folder / "x.features", data), first)
        told = [json.loads((folder / f"told-{rank}").read_text()) for rank in range(3)]
        assert all(0 <= one["images"] <= 20 for one in told) and any(one["written"] for one in told)
        left = {path.name for path in folder.iterdir() if path.name.startswith((".", "x"))}
        assert left == {"x.features"}, left
    assert told_last(tmp_path / "out" / str(rounds - 1)) == {"images": 0, "written": True}


def told_last(folder: Path) -> dict:
    return json.loads((folder / "told-2").read_text())


def test_a_rank_that_comes_late_takes_no_other_features_for_its_own(dataset, tmp_path):
    out, late = tmp_path / "x.features", replace(ALONE, rank=1, world=9)
    made = make_features(dataset.path, out, GRID, ALONE, OPTIONS).manifest
    again = make_features(dataset.path, out, GRID, late, OPTIONS)
    assert (again.manifest, again.images) == (made, 0)
    for settings, options in (
        (replace(GRID, sizes=Sizes(96, 96)), OPTIONS),
        (GRID, replace(OPTIONS, dtype="int8")),
    ):
        with pytest.raises(DataError, match=r"exists.*--force"):
            make_features(dataset.path, out, settings, late, options)
    with pytest.raises(DataError, match="start all ranks without --force"):
        make_features(dataset.path, out, GRID, late, replace(OPTIONS, force=True))
    Parts(out, []).folder.mkdir()  # left by a kill between the joining and the removal
    assert make_features(dataset.path, out, GRID, late, OPTIONS).manifest == made
    assert [path.name for path in tmp_path.iterdir()] == ["x.features"]


@pytest.mark.parametrize("kind", ["detector", "weights"])
def test_a_restart_with_another_model_of_the_same_name_is_refused(dataset, tmp_path, kind):
    """Interrupted: of two ranks, one has made its parts."""
    out, half = tmp_path / "x.features", replace(ALONE, world=2)
    if kind == "detector":
        folder = random_detr(tmp_path / "detr")
        settings = replace(GRID, boxes="detector", detector=str(folder))
        changed = folder / "preprocessor_config.json"
    else:
        changed = tmp_path / "cnn.safetensors"
        save_file(timm.create_model("resnet18").state_dict(), changed)
        settings = replace(GRID, weights=str(changed))
    assert make_features(dataset.path, out, settings, half, OPTIONS).manifest is None
    content = changed.read_bytes()
    changed.write_bytes(content[:-3] + b" " + content[-3:])
    with pytest.raises(DataError, match=f"other arguments: {kind}_sha256"):
        make_features(dataset.path, out, settings, half, OPTIONS)
    changed.write_bytes(content)
    rest = make_features(dataset.path, out, settings, replace(half, rank=1), OPTIONS)
    assert rest.manifest is not None and 0 < rest.images < 70


def test_a_disk_too_small_is_said_before_anything_is_made(dataset, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(work.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RunError, match=r"0.0 GB free.*Write to a larger disk"):
        make_features(dataset.path, tmp_path / "x.features", GRID, ALONE, OPTIONS)


def test_int8_needs_room_for_half_the_features(dataset, tmp_path, monkeypatch):
    out, row = tmp_path / "x.features", 4 * 512  # of 70 images, 4 objects of 512: parts in float16
    usage = type("Usage", (), {"free": 70 * (3 * row + 3 * 4 * 32)})
    monkeypatch.setattr(work.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RunError, match="or --int8"):
        make_features(dataset.path, out, GRID, ALONE, OPTIONS)
    assert make_features(dataset.path, out, GRID, ALONE, replace(OPTIONS, dtype="int8")).manifest is not None


def test_every_part_has_one_worker():
    for world, processes in ((1, 1), (3, 2), (2, 5)):
        shares = [
            Crew(processes, rank, world).share(process, list(range(17)))
            for rank in range(world)
            for process in range(processes)
        ]
        assert sorted(number for share in shares for number in share) == list(range(17))


def test_drawn_weights_are_no_file_of_that_name(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = replace(GRID, weights="random")
    before = settings.arguments(dataset)
    Path("random").write_bytes(b"something")
    assert settings.arguments(dataset) == before
