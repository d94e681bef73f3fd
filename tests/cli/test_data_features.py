"""`dsvlp data features`: its options, its summary, and the picture of what it made."""

import pytest
from click.testing import CliRunner

from dsvlp.cli import data
from tests.data.features.test_tsv import COUNTS, line, tsv
from tests.data.pictures_of_noise import make_dataset
from tests.regions.pictures import random_detr, small_data


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(data.command, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give one of --detector, --boxes and --from"),
        (["--boxes", "grid", "--detector", "x"], "give one of --detector, --boxes and --from"),
        (
            ["--boxes", "grid", "--classes", "c.txt"],
            "--classes goes with --from, and does nothing with --boxes",
        ),
        (
            ["--detector", "x", "--max-missing", "0.1"],
            "--max-missing goes with --from, and does nothing with",
        ),
        (["--from", "tsv", "a", "--backbone", "resnet101"], "--backbone goes with --detector and --boxes"),
        (
            ["--from", "tsv", "a", "--weights", "random"],
            "--weights goes with --detector and --boxes, and does",
        ),
        (["--from", "tsv", "a", "--shorter", "600"], "does nothing with --from"),
        (["--from", "tsv", "a", "--longer", "900"], "does nothing with --from"),
        (["--from", "folder", "a", "--batch", "8"], "does nothing with --from"),
        (["--from", "folder", "a", "--workers", "0"], "does nothing with --from"),
        (["--from", "folder", "a", "--processes", "2"], "does nothing with --from"),
        (["--from", "tsv", "a", "--from", "folder", "b"], "--from folder goes alone"),
        (["--boxes", "drawn"], "Invalid value for '--boxes'"),
        (["--boxes", "grid", "--objects", "0"], "Invalid value for '--objects'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(words, said):
    code, output = run("features", "x.beton", "--out", "x.features", *words)
    assert code == 2 and said in output


def test_features_of_a_detector_are_made_summed_up_and_shown(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    dataset, detector = small_data(tmp_path, 20), random_detr(tmp_path / "detr")
    out = tmp_path / "x.features"
    cnn = ("--backbone", "resnet18", "--weights", "random", "--shorter", 64, "--longer", 96)
    found = ("--detector", detector, "--objects", 5, "--int8")
    code, output = run("features", dataset.path, "--out", out, *found, *cnn, "--workers", 0)
    assert code == 0, output
    assert "20 images made in" in output and "images/s" in output
    assert "20 images of 5 objects, features of 512 int8" in output
    assert "5.0 an image, in the first 20 images" in output and "classes:  " in output
    code, output = run("show", dataset.path, "--features", out, "--out", tmp_path / "x.html", "--count", 3)
    assert code == 0 and (tmp_path / "x.html").read_text().count("<img") > 3, "a picture more for each image"


def test_a_rank_that_is_not_the_last_says_who_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    dataset, out = small_data(tmp_path, 20), tmp_path / "x.features"
    cnn = ("--backbone", "resnet18", "--weights", "random", "--shorter", 64, "--longer", 96)
    words = ("features", dataset.path, "--out", out, "--boxes", "grid", "--objects", 4, *cnn, "--workers", 0)
    code, output = run(*words)
    assert code == 0 and "rank 1 of 2: 4 images made" in output and "the last rank to finish" in output
    monkeypatch.setenv("RANK", "0")
    code, output = run(*words)
    assert code == 0 and "rank 0 of 2: 16 images made" in output and "cell 80" in output and out.is_dir()


def test_features_of_several_tsv_files_are_read_as_one(tmp_path):
    dataset = make_dataset(tmp_path, "a", [1] * len(COUNTS))
    files = [
        tsv(tmp_path, [line(dataset, row) for row in range(first, len(COUNTS), 2)], f"{first}.tsv")
        for first in (0, 1)
    ]
    words = [word for file in files for word in ("--from", "tsv", file)]
    code, output = run("features", dataset.path, "--out", tmp_path / "a.features", *words, "--objects", 5)
    assert code == 0 and "6 images of 5 objects" in output and "image with fewer objects" in output
