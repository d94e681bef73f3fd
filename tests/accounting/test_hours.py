import time
from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsvlp.accounting.charges import REASONS, Charge
from dsvlp.accounting.hours import by_week, clip, total, totals

CHARGE = Charge(
    run="a",
    system="svl",
    sweep=None,
    user="ada",
    job="7",
    attempts=(1,),
    source="sacct",
    outcome="finished",
    began=1000.0,
    seconds=100.0,
    devices=4,
    unit="GPU",
    spent=dict.fromkeys(REASONS, 0.0) | {"train": 240.0, "redone": 40.0, "startup": 120.0},
    samples=80,
    redone_samples=20,
    flops=2.8e15,
    peak_flops=1e14,
    peak_kind="peak",
    joules=3.6e6,
)


@pytest.fixture
def berlin(monkeypatch):
    """The clock goes back on 25 October 2026, a Sunday."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_sum_tells_goodput_mfu_and_energy():
    whole = total("all", [CHARGE, CHARGE])
    assert (whole.billed, whole.productive) == (800 / 3600, 480 / 3600)
    assert whole.goodput == pytest.approx(0.6)
    assert whole.mfu == pytest.approx(0.1)  # 2.8e15 FLOP in 280 device-seconds of steps at 1e14 a second
    assert whole.kwh == pytest.approx(2.0) and whole.samples == 160
    assert sum(whole.spent.values()) == pytest.approx(whole.billed)


def test_energy_is_none_where_one_attempt_does_not_tell_it():
    assert total("all", [CHARGE, replace(CHARGE, joules=None)]).kwh is None
    lost = replace(CHARGE, attempts=(), joules=None)  # a start that came to nothing has no meter
    assert total("all", [CHARGE, lost]).kwh == pytest.approx(1.0)


def test_gpus_and_processes_are_never_added():
    sums = totals([CHARGE, replace(CHARGE, unit="CPU process"), CHARGE], lambda charge: charge.run)
    assert [(line.unit, line.charges) for line in sums] == [("GPU", 2), ("CPU process", 1)]


def test_a_charge_that_sticks_out_of_the_asked_time_is_cut_in_proportion():
    part = clip(CHARGE, 1050.0, 1075.0)
    assert part is not None
    assert (part.billed, part.spent["train"], part.samples, part.joules) == (100.0, 60.0, 20.0, 0.9e6)
    assert clip(CHARGE, 1100.0, None) is None and clip(CHARGE, None, 1000.0) is None
    assert clip(CHARGE, 0.0, 2000.0) is CHARGE


def test_a_charge_over_a_sundays_midnight_lies_in_two_weeks_also_where_the_clock_changes(berlin):
    sunday = datetime(2026, 10, 25, 0, 0).timestamp()  # this day has 25 hours
    weeks = dict(by_week([replace(CHARGE, began=sunday, seconds=26 * 3600.0)]))
    assert {week: part.seconds / 3600 for week, part in weeks.items()} == {"2026-W43": 25.0, "2026-W44": 1.0}


def test_the_first_days_of_january_may_be_of_last_years_week(berlin):
    new_year = datetime(2027, 1, 1, 12).timestamp()
    assert [week for week, _ in by_week([replace(CHARGE, began=new_year)])] == ["2026-W53"]


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 4e9), st.floats(0, 4e6), st.floats(0, 4e9))
def test_no_second_is_lost_or_told_twice_by_cutting(began, seconds, cut):
    charge = replace(CHARGE, began=began, seconds=seconds)
    parts = [part for part in (clip(charge, None, cut), clip(charge, cut, None)) if part is not None]
    assert sum(part.seconds for part in parts) == pytest.approx(seconds, abs=1e-3)
    weeks = [part.seconds for _, part in by_week([charge])]
    assert sum(weeks) == pytest.approx(seconds, abs=1e-3)
