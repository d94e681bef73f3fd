"""The verbs of `dsvlp data`: options, and what they print."""

import json

import pytest
from click.testing import CliRunner

from dsvlp import recipe
from dsvlp.cli import data
from dsvlp.data.dataset import Dataset
from dsvlp.data.opened import open_data
from tests.data.raw_files import encoded, pixels


@pytest.mark.parametrize(
    "words",
    [
        ["write", "csv", "t.csv", "--out", "x.beton", "--rows-per-shard", "-1"],
        ["write", "csv", "t.csv", "--out", "x.beton", "--processes", "0"],
        ["write", "csv", "t.csv", "--out", "x.beton", "--max-missing", "1.5"],
        ["show", "x.beton", "--out", "x.png", "--count", "0"],
    ],
)
def test_a_count_that_makes_no_sense_is_refused_by_its_option(words):
    result = CliRunner().invoke(data.command, words)
    assert result.exit_code == 2
    assert f"Invalid value for '{words[-2]}'" in result.output


def run(*words: object) -> str:
    result = CliRunner().invoke(data.command, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_options_of_writing_come_before_a_readers_own():
    shown = run("write", "gqa", "--help")
    options = ["--out", "--processes", "--answers", "--answer-count", "--questions", "--images"]
    places = [shown.index(f"  {option} ") for option in options]
    assert places == sorted(places) and "[default: 9" in shown and "[required]" in shown


def test_a_demo_of_a_system_of_objects_makes_its_features_too(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = ("data.synthetic.images=24", "data.synthetic.image_size=48")
    lines = [line.split() for line in run("demo", "tiny_semvlp", *small).splitlines()]
    for beton, features in lines:
        assert Dataset.open(beton, "quick", features).features is not None
    made = sorted(tmp_path.rglob("*.beton")) + sorted(tmp_path.rglob("*.features"))
    with open_data(recipe.load("tiny_semvlp", small)) as opened:
        assert [str(one.path) for one in (*opened.datasets, opened.held_out)] == [pair[0] for pair in lines]
    assert made == sorted(tmp_path.rglob("*.beton")) + sorted(tmp_path.rglob("*.features")), "nothing anew"


def test_answers_outside_the_table_are_told_apart_from_what_is_skipped(tmp_path):
    (tmp_path / "n1.jpg").write_bytes(encoded(pixels(0)))
    asked = {
        str(number): {"imageId": "n1", "question": f"Is it {number}?", "answer": answer}
        for number, answer in enumerate(["no", "no", "cat"])
    }
    (tmp_path / "q.json").write_text(json.dumps(asked))
    words = ("--questions", tmp_path / "q.json", "--images", tmp_path, "--out", tmp_path / "x.beton")
    shown = run("write", "gqa", *words, "--answer-count", 2, "--processes", 1)
    assert "1 question with every answer outside the answer table (e.g. 'cat')" in shown
    assert "skipped: nothing" in shown
