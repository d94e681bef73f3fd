"""`dsvlp data features`: its options, its summary, and the picture of what it made."""

import pytest
from click.testing import CliRunner

from dsvlp.cli import data
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
        (["--boxes", "grid", "--classes", "c.txt"], "--classes goes with --from"),
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
    cnn = ("--backbone", "resnet18", "--weights", "random", "--shorter", 32, "--longer", 64)
    words = ("features", dataset.path, "--out", out, "--boxes", "grid", "--objects", 4, *cnn, "--workers", 0)
    code, output = run(*words)
    assert code == 0 and "rank 1 of 2: 4 images made" in output and "the last rank to finish" in output
    monkeypatch.setenv("RANK", "0")
    code, output = run(*words)
    assert code == 0 and "rank 0 of 2: 16 images made" in output and "cell 80" in output and out.is_dir()
