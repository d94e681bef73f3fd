"""`check` finds what hashes cannot, `show` draws what is stored, and the command line says it."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dsvlp.cli.data import command
from dsvlp.data import check, show
from dsvlp.data.dataset import Dataset
from dsvlp.data.readers.base import Reader
from dsvlp.data.writer import Options, write
from dsvlp.errors import DataError
from dsvlp.types import ImageSource, Sample
from tests.data.raw_files import MAPS, make_pictures, pixels, reader

QUIET = Options(processes=1, progress=False)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two data sets of eight pictures each that share two by id and hash, and one more by hash alone."""
    folder = tmp_path_factory.mktemp("sets")
    paths = make_pictures(folder / "p", 14)
    renamed = folder / "renamed.jpg"
    renamed.write_bytes(paths[0].read_bytes())
    write(reader(paths[:8]), folder / "a.beton", QUIET)
    captions = [(path.name, path) for path in [*paths[6:13], renamed]]
    other = [Sample("caption", (ImageSource(name, path),), "text") for name, path in captions]
    write(Reader("test", "others", lambda: iter(other)), folder / "b.beton", QUIET)
    return folder / "a.beton", folder / "b.beton"


def test_shared_images_are_found_by_id_and_by_hash(sets: tuple[Path, Path]) -> None:
    shared = check.shared_images(Dataset.open(sets[0]), Dataset.open(sets[1]))
    assert shared.by_id == ["0006.jpg", "0007.jpg"]
    assert sorted(shared.by_hash) == [
        ("0000.jpg", "renamed.jpg"),
        ("0006.jpg", "0006.jpg"),
        ("0007.jpg", "0007.jpg"),
    ]


def test_statistics_are_those_of_the_input(sets: tuple[Path, Path]) -> None:
    found = check.check(sets[0])
    assert (found.images, found.texts, found.maps) == (8, 16, 3)
    assert found.boxes_of_class == {"cat": 4, "dog": 4} and found.boxes_per_image == (0, 1, 2)
    assert found.tasks == {"caption": 16} and found.words_per_text == (5, 5, 5)


def test_rows_can_be_read_in_any_order(sets: tuple[Path, Path]) -> None:
    dataset = Dataset.open(sets[0])
    whole = list(check.rows(dataset))
    for stored in check.rows(dataset, np.array([5, 0, 7])):
        assert stored.jpeg == whole[stored.row].jpeg


def test_a_map_tints_labelled_pixels_and_leaves_the_others() -> None:
    picture = Image.fromarray(pixels(1))
    ids = np.zeros((24, 32), np.uint8)
    ids[:12] = 5
    drawn = np.asarray(show.with_map(picture, ids, MAPS))
    np.testing.assert_array_equal(drawn[12:], pixels(1)[12:])
    assert (drawn[:12] != pixels(1)[:12]).mean() > 0.9


def test_boxes_are_drawn_where_they_stand(sets: tuple[Path, Path]) -> None:
    dataset = Dataset.open(sets[0])
    (stored,) = check.rows(dataset, np.array([2]))
    plain, boxed = show.card(dataset, stored).pictures[:2]
    changed = np.argwhere((np.asarray(plain) != np.asarray(boxed)).any(-1))
    assert [2, 1] in changed.tolist() and [12, 10] in changed.tolist()


def test_the_html_holds_texts_safely(tmp_path: Path) -> None:
    cards = [show.Card("<id>", [Image.fromarray(pixels(1))], ["<script>alert(1)</script>"], [])]
    paths = make_pictures(tmp_path / "p", 1)
    write(reader(paths), tmp_path / "a.beton", QUIET)
    page = show.page(cards, Dataset.open(tmp_path / "a.beton"))
    assert "<script>" not in page and "&lt;script&gt;" in page and "data:image/jpeg;base64," in page


def test_the_commands_work_from_raw_pictures_to_a_vocabulary(tmp_path: Path) -> None:
    for number, path in enumerate(make_pictures(tmp_path / "in", 5)):
        path.with_suffix(".txt").write_text(f"picture {number}\n\n")
    (tmp_path / "in" / "0004.jpg").write_bytes(b"nothing")
    run = CliRunner()
    out = tmp_path / "x.beton"
    arguments = ["write", "folder", str(tmp_path / "in"), "--out", str(out), "--processes", "1"]
    refused = run.invoke(command, arguments)
    assert isinstance(refused.exception, DataError) and "--max-missing" in str(refused.exception)
    written = run.invoke(command, [*arguments, "--max-missing", "0.5"])
    assert written.exit_code == 0, written.output
    assert "4 images" in written.output and "1 not an image" in written.output
    checked = run.invoke(command, ["check", str(out), "--against", str(out)])
    assert checked.exit_code == 1 and "shared by hash   4" in checked.output
    for name in ("sheet.png", "sheet.html"):
        assert run.invoke(command, ["show", str(out), "--out", str(tmp_path / name)]).exit_code == 0
    assert Image.open(tmp_path / "sheet.png").width > 200
    assert run.invoke(command, ["vocab", str(out), "--size", "40"]).exit_code == 0
    assert (out / "tokenizer" / "tokenizer.json").is_file() and Dataset.open(out).tokenizer is not None
    assert isinstance(run.invoke(command, ["vocab", str(out)]).exception, DataError)


def test_the_synthetic_world_goes_from_drawing_to_a_data_set(tmp_path: Path) -> None:
    run = CliRunner()
    world, out = str(tmp_path / "world"), str(tmp_path / "w.beton")
    assert run.invoke(command, ["synth", "--out", world, "--images", "6"]).exit_code == 0
    written = run.invoke(
        command, ["write", "world", world, "--out", out, "--task", "question", "--processes", "1"]
    )
    assert written.exit_code == 0, written.output
    assert check.check(out).tasks.keys() == {"question"}
