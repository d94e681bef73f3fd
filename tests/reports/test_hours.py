import csv
import io
import json
import re
from dataclasses import replace
from datetime import datetime

import pytest

from dsvlp.accounting.charges import REASONS
from dsvlp.accounting.gather import Gathered
from dsvlp.accounting.hours import totals
from dsvlp.errors import RunError
from dsvlp.reports import hours
from dsvlp.reports.hours_picture import draw
from tests.accounting.test_hours import CHARGE

MONDAY = datetime(2026, 11, 23).timestamp()
CHARGES = [
    replace(CHARGE, began=MONDAY - 50),
    replace(CHARGE, run="b", sweep="s", user="bob", began=MONDAY + 50, outcome="running"),
    replace(CHARGE, run="c", sweep="s", unit="CPU process", began=MONDAY + 60),
]
FOUND = Gathered(CHARGES, ["A note."])


def test_every_run_sweep_user_and_week_has_its_line_and_units_are_apart():
    text = hours.text(FOUND, week=True)
    lines = [re.split(r"  +", line) for line in text.splitlines()]
    assert ["a", "0.1111", "0.0667", "60.0%", "1", "80", "2.8", "10.0% of peak", "1"] in lines
    assert [line[4] for line in lines if line[0] == "bob"] == ["1 (1 running)"]
    firsts = [line[0] for line in lines]
    assert firsts.count("s") == 2  # the sweep, in CPU process-hours and in GPU-hours
    assert {"b", "ada", "bob", "all", "2026-W47 ada", "2026-W48 ada", "2026-W48 bob"} <= set(firsts)
    assert "CPU process-hours" in text and text.endswith("A note.")


def test_the_losses_stand_by_size_and_add_up():
    text = hours.text(FOUND)
    shares = re.findall(r"^(training|start-up|steps made again).* ([\d.]+)%$", text, re.M)[:3]
    assert [name for name, _ in shares] == ["training", "start-up", "steps made again"]
    assert sum(float(share) for _, share in shares) == pytest.approx(100)


def test_nothing_is_said_to_be_nothing():
    assert hours.text(Gathered([], ["A note."])) == "Nothing was billed.\nA note."


def test_json_holds_all_sums_and_every_charge():
    told = json.loads(json.dumps(hours.to_json(FOUND)))
    assert [line["name"] for line in told["runs"]] == ["a", "b", "c"]
    assert [line["unit"] for line in told["all"]] == ["GPU", "CPU process"]
    assert sum(line["billed"] for line in told["weeks"]) == pytest.approx(
        sum(c.billed for c in CHARGES) / 3600
    )
    assert told["charges"][0]["billed"] == 400 and told["notes"] == ["A note."]


def test_csv_has_a_line_a_charge_whose_parts_add_up():
    rows = list(csv.DictReader(io.StringIO(hours.to_csv(CHARGES))))
    assert len(rows) == 3
    for row in rows:
        assert sum(float(row[f"spent_{reason}"]) for reason in REASONS) == float(row["billed"])
    assert hours.to_csv([]) == "run\n"


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture_is_drawn(tmp_path, ending, start):
    path = tmp_path / f"hours.{ending}"
    draw(totals(CHARGES[:2], lambda charge: charge.run), path)
    assert path.read_bytes().startswith(start)


def test_a_picture_of_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"\.png, \.pdf or \.svg"):
        draw(totals(CHARGES[:1], lambda charge: charge.run), tmp_path / "hours.word")


def test_every_reason_has_its_label():
    assert hours.LABELS.keys() == set(REASONS)
