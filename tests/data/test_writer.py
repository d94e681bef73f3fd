"""Writing a data set: what is stored, what is counted, and what an interruption leaves."""

import errno
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from dsvlp.data import check
from dsvlp.data import manifest as manifests
from dsvlp.data.dataset import Dataset
from dsvlp.data.readers.base import Reader, Tables
from dsvlp.data.workplace import Workplace
from dsvlp.data.writer import Options, write
from dsvlp.errors import DataError
from dsvlp.types import ImageSource, Sample
from tests.data.raw_files import BOXES, MAPS, encoded, files_of, make_pictures, pixels, reader, source

QUIET = Options(processes=1, rows_per_shard=8, progress=False)


def of(*samples: Sample, tables: Tables = Tables(MAPS, BOXES)) -> Reader:
    return Reader("test", "samples", lambda: iter(samples), tables)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    folder = tmp_path_factory.mktemp("written")
    paths = make_pictures(folder / "pictures", 20)
    write(reader(paths), folder / "a.beton", QUIET)
    return paths, folder / "a.beton"


def test_every_value_comes_back_as_it_was_given(written: tuple[list[Path], Path]) -> None:
    paths, out = written
    dataset = Dataset.open(out)
    assert [shard.rows for shard in dataset.shards] == [8, 8, 4]
    assert (dataset.images, dataset.samples_count) == (20, 40)
    for stored, path in zip(check.rows(dataset), paths, strict=True):
        given = source(path, stored.row)
        assert stored.jpeg == path.read_bytes() and dataset.image_id(stored.row) == path.name
        assert stored.map_png == (given.map_png or b"")
        boxes = given.boxes_xyxy if given.boxes_xyxy is not None else np.zeros((0, 4), np.float32)
        np.testing.assert_array_equal(stored.boxes_xyxy, boxes)
        assert dataset.hashes[stored.row].tobytes() == hashlib.sha256(path.read_bytes()).digest()
        first, end = dataset.first_sample[stored.row : stored.row + 2]
        texts = dataset.texts(dataset.samples["text"][first:end])
        assert texts == [f"caption {k} of picture {stored.row}" for k in range(2)]
        assert (dataset.samples["rows"][first:end] == [stored.row, -1]).all()
    shard, local = dataset.locate(np.array([0, 7, 8, 19]))
    assert shard.tolist() == [0, 0, 1, 2] and local.tolist() == [0, 7, 0, 3]
    assert dataset.segmentation == MAPS and dataset.boxes == BOXES


def test_the_number_of_processes_does_not_change_a_byte(
    written: tuple[list[Path], Path], tmp_path: Path
) -> None:
    paths, out = written
    write(reader(paths), tmp_path / "b.beton", replace(QUIET, processes=2))
    assert files_of(tmp_path / "b.beton") == files_of(out)


def test_an_existing_data_set_stays_without_force(written: tuple[list[Path], Path], tmp_path: Path) -> None:
    paths, out = written
    copy = tmp_path / "a.beton"
    shutil.copytree(out, copy)
    with pytest.raises(DataError, match="--force"):
        write(reader(paths[:3]), copy, QUIET)
    assert files_of(copy) == files_of(out)
    write(reader(paths[:3]), copy, replace(QUIET, force=True))
    assert Dataset.open(copy).images == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.beton"]


def test_bad_texts_and_images_are_counted_by_reason_and_lose_nothing_else(tmp_path: Path) -> None:
    good, absent, broken = *make_pictures(tmp_path, 1), tmp_path / "absent.jpg", tmp_path / "broken.jpg"
    broken.write_bytes(good.read_bytes()[:200])
    png = tmp_path / "x.png"
    png.write_bytes(encoded(pixels(9), "PNG"))
    samples = [Sample("caption", (ImageSource(p.name, p),), "fine") for p in (good, absent, broken, png)]
    image = (ImageSource(good.name, good),)
    samples += [Sample("caption", image, text) for text in ("", " \n", "x" * 5000, "caf\udce9", "also fine")]
    manifest = write(of(*samples), tmp_path / "a.beton", replace(QUIET, max_missing=0.5))
    assert manifest.skipped.counts == {
        "absent image": 1,
        "truncated or corrupt image": 1,
        "empty text": 2,
        "text above 4096 characters": 1,
        "text not UTF-8": 1,
        "text of an image left out": 2,
    }
    assert "broken.jpg" in manifest.skipped.examples["truncated or corrupt image"][0]
    assert manifest.normalised.counts == {"PNG": 1}
    dataset = Dataset.open(tmp_path / "a.beton")
    assert dataset.texts(range(dataset.samples_count)) == ["fine", "also fine", "fine"]
    assert [dataset.image_id(row) for row in range(2)] == [good.name, "x.png"]


def test_too_many_absent_images_stop_the_writing_and_it_goes_on_when_mended(tmp_path: Path) -> None:
    paths = make_pictures(tmp_path / "p", 10)
    hidden = paths[4].rename(tmp_path / "hidden")
    with pytest.raises(DataError, match=r"1 of 10 images .* 1 absent image .*0004\.jpg.*max-missing"):
        write(reader(paths), tmp_path / "a.beton", QUIET)
    assert not (tmp_path / "a.beton").exists()
    hidden.rename(paths[4])
    assert write(reader(paths), tmp_path / "a.beton", QUIET).images == 10


def test_boxes_are_clipped_and_unusable_annotations_counted(tmp_path: Path) -> None:
    (path,) = make_pictures(tmp_path, 1)
    image = ImageSource(
        "a",
        path,
        boxes_xyxy=np.array([[-5, 2, 100, 12], [3, 3, 3, 9]], np.float32),
        box_labels=np.array([3, 7]),
        map_png=encoded(np.zeros((5, 5), np.uint8), "PNG"),
    )
    manifest = write(of(Sample("caption", (image,), "t")), tmp_path / "a.beton", QUIET)
    assert manifest.skipped.counts == {"empty box": 1, "map of another size": 1}
    (stored,) = check.rows(Dataset.open(tmp_path / "a.beton"))
    np.testing.assert_array_equal(stored.boxes_xyxy, [[0, 2, 32, 12]])
    assert manifest.maps == 0 and manifest.segmentation is None


@pytest.mark.parametrize("processes", [1, 2])
def test_a_class_outside_the_table_is_an_error_that_names_file_and_value(
    tmp_path: Path, processes: int
) -> None:
    (path,) = make_pictures(tmp_path, 1)
    (tmp_path / "map.png").write_bytes(encoded(np.full((24, 32), 4, np.uint8), "PNG"))
    image = ImageSource("a", path, map_path=tmp_path / "map.png")
    with pytest.raises(DataError, match=r"map\.png holds class id 4.*regions"):
        write(of(Sample("caption", (image,), "t")), tmp_path / "a.beton", replace(QUIET, processes=processes))
    boxed = ImageSource("a", path, boxes_xyxy=np.ones((1, 4), np.float32), box_labels=np.array([4]))
    with pytest.raises(DataError, match="class 4"):
        write(of(Sample("caption", (boxed,), "t")), tmp_path / "b.beton", QUIET)


def test_questions_statements_and_phrases_come_back(tmp_path: Path) -> None:
    left, right = make_pictures(tmp_path, 2)
    phrases = np.array([[1, 0, 3], [0, 2, 4], [-1, -1, -1]])
    first = ImageSource("left", left, box_phrases=phrases)
    samples = [
        Sample("caption", (first,), " "),
        Sample("caption", (first,), "the cat"),
        Sample("question", (first,), "what?", (("cat", 1.0), ("", 0.3))),
        Sample("statement", (ImageSource("right", right), first), "both", label=1),
    ]
    write(of(*samples), tmp_path / "a.beton", replace(QUIET, answer_count=1))
    dataset = Dataset.open(tmp_path / "a.beton")
    assert dataset.answers_of(1) == [("cat", 1.0), ("", 0.3)] and dataset.answers_of(0) == []
    assert dataset.samples["task"].tolist() == [0, 1, 2]
    assert dataset.samples["rows"].tolist() == [[0, -1], [0, -1], [1, 0]]
    assert dataset.samples["label"].tolist() == [-1, -1, 1]
    np.testing.assert_array_equal(dataset.phrases(0), [[0, 0, 3], [-1, 2, 4], [-1, -1, -1]])
    assert len(dataset.phrases(1)) == 0


def test_one_id_for_two_files_is_refused(tmp_path: Path) -> None:
    a, b = make_pictures(tmp_path, 2)
    samples = [
        Sample("caption", (ImageSource("same", path),), "t", where=f"at {path.name}") for path in (a, b)
    ]
    with pytest.raises(DataError, match=r"at 0001\.jpg.*'same'"):
        write(of(*samples), tmp_path / "a.beton", QUIET)


def test_an_image_id_that_cannot_be_stored_is_counted(tmp_path: Path) -> None:
    (path,) = make_pictures(tmp_path, 1)
    samples = [Sample("caption", (ImageSource(id, path),), "t") for id in ("fine", "caf\udce9")]
    manifest = write(of(*samples), tmp_path / "a.beton", QUIET)
    assert (manifest.images, manifest.skipped.counts) == (1, {"image id: text not UTF-8": 1})


def test_a_pipe_in_the_place_of_an_image_is_counted_not_waited_for(tmp_path: Path) -> None:
    good, pipe = *make_pictures(tmp_path, 1), tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    samples = [Sample("caption", (ImageSource(p.name, p),), "t") for p in (good, pipe)]
    manifest = write(of(*samples), tmp_path / "a.beton", replace(QUIET, max_missing=0.5))
    assert manifest.images == 1 and manifest.skipped.counts["unreadable file"] == 1


def test_a_manifest_cut_by_a_full_disk_is_not_taken_for_a_finished_writing(
    written: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifests.load(written[1])

    def full(value: object, file: IO[str], **_: object) -> None:
        file.write('{"format": 1, ')
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(manifests.json, "dump", full)
        with pytest.raises(OSError, match="No space left"):
            manifest.save(tmp_path)
    assert not (tmp_path / manifests.NAME).exists()


def test_no_sample_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image that can be stored"):
        write(of(), tmp_path / "a.beton", QUIET)


def test_other_arguments_after_an_interruption_are_shown(tmp_path: Path) -> None:
    paths = make_pictures(tmp_path / "p", 2)
    with pytest.raises(DataError):
        write(reader([*paths, tmp_path / "none.jpg"]), tmp_path / "a.beton", QUIET)
    with pytest.raises(DataError, match="rows_per_shard: 8 -> 9"):
        write(reader(paths), tmp_path / "a.beton", replace(QUIET, rows_per_shard=9))


def test_two_writers_of_one_data_set_are_refused(tmp_path: Path) -> None:
    with Workplace(tmp_path / "a.beton", {}, False), pytest.raises(DataError, match="another process"):
        Workplace(tmp_path / "a.beton", {}, False).__enter__()


def test_a_kill_between_the_two_renames_loses_nothing(
    written: tuple[list[Path], Path], tmp_path: Path
) -> None:
    _, out = written
    shutil.copytree(out, tmp_path / ".a.beton.old")
    with pytest.raises(DataError, match="exists"):
        Workplace(tmp_path / "a.beton", {}, False).__enter__()
    assert Dataset.open(tmp_path / "a.beton").images == 20


def test_a_full_disk_ends_in_one_sentence_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """The limit on a file's size stands for the full disk: both fail in write()."""
    paths = make_pictures(tmp_path / "p", 20)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (2_000, 500_000):  # in a part, in a shard
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(DataError, match="run the same command again"):
                write(reader(paths), tmp_path / "a.beton", QUIET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not (tmp_path / "a.beton").exists()
    write(reader(paths), tmp_path / "a.beton", QUIET)
    write(reader(paths), tmp_path / "b.beton", QUIET)
    assert files_of(tmp_path / "a.beton") == files_of(tmp_path / "b.beton")


SCRIPT = """
if __name__ == "__main__":  # the workers import this file too, and need none of it
    import sys
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from tests.data import raw_files
    from dsvlp.data.writer import Options, write
    paths = sorted(Path({pictures!r}).iterdir())
    write(raw_files.reader(paths), Path({out!r}), Options({processes}, rows_per_shard=100, progress=False))
"""


def test_killed_among_its_parts_it_goes_on_to_the_same_bytes_and_leaves_no_worker(tmp_path: Path) -> None:
    paths = make_pictures(tmp_path / "p", 400)
    write(reader(paths), tmp_path / "whole.beton", replace(QUIET, rows_per_shard=100))
    script, out = tmp_path / "run.py", tmp_path / "killed.beton"
    settings = {"root": str(Path(__file__).parents[2]), "pictures": str(tmp_path / "p"), "out": str(out)}
    script.write_text(SCRIPT.format(processes=2, **settings))
    parts_dir = tmp_path / ".killed.beton.partial" / "work"
    process = subprocess.Popen([sys.executable, str(script)])
    end = time.monotonic() + 120
    while len(list(parts_dir.glob("part-*.json"))) < 3 and process.poll() is None:
        assert time.monotonic() < end, "the writer makes no parts"
        time.sleep(0.002)
    children = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    while any(_alive(pid) for pid in children):
        assert time.monotonic() < end, "a worker outlives the writer"
        time.sleep(0.05)
    assert not out.exists(), "it was faster than the signal: make more pictures"
    write(reader(paths), out, Options(1, rows_per_shard=100, progress=False))
    assert files_of(out) == files_of(tmp_path / "whole.beton")


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
