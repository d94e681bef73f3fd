import json
import math
import re
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

from dsvlp import recipe
from dsvlp.cli import report
from dsvlp.reports import curves, html, run, table

STEPS = recipe.load("tiny_svl").schedule.steps  # the fixtures' recipe


class Outside(HTMLParser):
    """Collects every address that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_needs_no_other_file(folder):
    reader = Outside()
    reader.feed(html.page(run.read(folder)))
    assert reader.addresses and all(a.startswith("data:image/png;base64,") for a in reader.addresses)


def test_the_page_shows_recipe_scores_and_every_curve(folder):
    (folder / "scores.json").write_text(json.dumps({"retrieval": {"tr_r1": 0.4321}}))
    page = html.page(run.read(folder))
    assert "retrieval/tr_r1" in page and "0.4321" in page
    assert "global_pairs" in page
    titles = set(re.findall(r'alt="([^"]*)"', page))
    assert titles == {"loss", "time", "validation/loss", "optimizer/lr"}


def test_a_share_stands_with_its_interval_and_sample_size(folder):
    share = {"value": 0.5, "interval_95": [0.4, 0.6], "total": 96}
    (folder / "scores.json").write_text(json.dumps({"retrieval": {"tr_r1": share}}))
    assert html.scores(run.read(folder)) == [("retrieval/tr_r1", "50.0% (95%: 40.0% to 60.0%, of 96)")]
    (folder / "scores.json").write_text(json.dumps({"tr_r1": {**share, "chance": 0.005}}))
    text = "50.0% (95%: 40.0% to 60.0%, of 96, chance 0.5%)"
    assert html.scores(run.read(folder)) == [("tr_r1", text)]


def test_gates_stand_a_pair_a_row_and_only_where_there_are_any(folder):
    assert html.gates(run.read(folder)) == [] and "Gates" not in html.page(run.read(folder))
    values = {
        f"gates/{side}/{k}": k + part for side, part in (("image", 0.25), ("text", 0.5)) for k in (9, 10)
    }
    with (folder / "metrics.jsonl").open("w") as lines:
        for step, factor in ((1, 0.0), (2, 1.0)):
            line = {"step": step, "samples": step, **{name: factor * v for name, v in values.items()}}
            lines.write(json.dumps(line) + "\n")
    told = run.read(folder)
    assert html.gates(told) == [("9", 9.25, 9.5), ("10", 10.25, 10.5)]
    assert "Gates of the fusion" in html.page(told)


def test_text_from_a_run_cannot_become_markup(folder):
    (folder / "manifest.json").write_text(json.dumps({"command": ["<script>alert(1)</script>"]}))
    assert "<script>" not in html.page(run.read(folder))


def test_time_split_adds_up_to_one(folder):
    split = html.time_split(run.read(folder))
    assert split == {"data": pytest.approx(0.25), "forward": pytest.approx(0.75)}


def test_an_objectives_work_on_the_host_is_no_part_of_its_own_in_the_time_split(folder):
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"time/data": 0.1', '"time/data": 0.1, "time/spl/waiting": 0.2'))
    split = html.time_split(run.read(folder))
    assert split["data"] + split["forward"] == pytest.approx(1)
    assert split["spl/waiting"] == pytest.approx(0.5)


def test_a_run_that_has_not_begun_still_has_a_report(folder):
    (folder / "metrics.jsonl").unlink()
    assert f"0 of {STEPS}" in html.page(run.read(folder))


def test_the_verb_writes_the_page_and_prints_the_table(folder):
    done = CliRunner().invoke(report.command, [str(folder)])
    assert done.exit_code == 0, done.output
    assert (folder / "report.html").is_file()
    assert f"3 of {STEPS}" in done.output
    row = next(line.split() for line in done.output.splitlines() if line.startswith("mlm"))
    assert row == ["mlm", "2", "2.5", "3.2"]


def test_every_objective_stands_beside_its_best_constant_predictor(folder):
    rows = {row[0]: row[1:4] for row in html.losses(run.read(folder))}
    assert rows == {"itm": ("", "", ""), "mlm": (2.0, 2.5, 3.2), "segl": ("", "", "")}


def test_smoothing_keeps_a_constant_and_passes_over_nan():
    assert curves.smooth([2.0, math.nan, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert math.isnan(curves.smooth([math.nan])[0])


def test_numbers_stand_right_and_words_left():
    lines = table.text(("name", "n"), [("a", 5), ("long", 1234)]).splitlines()
    assert lines[2] == "a         5" and lines[3] == "long  1,234"


def test_cells_are_escaped():
    assert "&lt;b&gt;" in table.to_html(("x",), [("<b>",)])
