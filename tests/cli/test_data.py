"""The options of `dsvlp data`: counts that make no sense are refused before anything is read."""

import pytest
from click.testing import CliRunner

from dsvlp.cli import data


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
