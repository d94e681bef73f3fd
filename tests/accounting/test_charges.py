from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsvlp.accounting.charges import REASONS, RunLedger, charges, find_row, spend
from dsvlp.accounting.ledger import Attempt
from dsvlp.accounting.sacct import Row

ATTEMPT = Attempt(
    1,
    1010.0,
    1100.0,
    "finished",
    from_step=0,
    to_step=9,
    job="7",
    processes=4,
    samples=90,
    seconds={"startup": 20.0, "train": 60.0, "data_wait": 3.0, "save": 5.0},
)
ROW = Row("7", "c", "ada", "COMPLETED", 1000.0, 105, 4, "x")


def run(*attempts: Attempt, name: str = "a") -> RunLedger:
    return RunLedger(name, "svl", attempts)


def test_the_parts_of_a_charge_add_up_to_what_was_billed():
    (charge,), notes = charges([run(ATTEMPT)], [ROW])
    assert charge.billed == 105 * 4 and not notes
    assert sum(charge.spent.values()) == charge.billed
    assert {reason: seconds for reason, seconds in charge.spent.items() if seconds} == {
        "startup": 4 * (10 + 20),  # ten seconds passed before the run's clock began
        "train": 4 * 60,
        "data_wait": 4 * 3,
        "save": 4 * 5,
        "unexplained": 4 * 7,
    }


def test_gpus_without_a_process_are_told():
    spent = spend(1000.0, 100, 8, [ATTEMPT])
    assert spent["unused"] == 400 and spent["train"] == 240 and sum(spent.values()) == 800


def test_an_attempt_that_made_no_step_is_lost_whole():
    barren = replace(ATTEMPT, outcome="failed", to_step=0, error="ValueError: x")
    (charge,), _ = charges([run(barren)], [ROW])
    assert charge.spent["failed"] == charge.billed
    stopped = replace(barren, outcome="stopped")
    assert charges([run(stopped)], [ROW])[0][0].spent["failed"] == 0


def test_what_passed_after_the_last_sign_of_life_of_the_dead_is_lost():
    dead = replace(ATTEMPT, outcome="died", seen=1095.0)
    (charge,), _ = charges([run(dead)], [ROW])
    assert charge.spent["failed"] == 4 * 7 and charge.spent["unexplained"] == 0


def test_every_incarnation_of_a_requeued_job_is_billed_also_one_that_left_no_trace():
    rows = [
        replace(ROW, state="REQUEUED"),
        replace(ROW, start=1200.0),
        replace(ROW, start=1400.0, seconds=30),
    ]
    later = replace(ATTEMPT, attempt=2, restart=2, began=1405.0, seen=1425.0, seconds={"train": 20.0})
    found, notes = charges([run(ATTEMPT, later)], rows)
    assert not notes
    assert [(charge.attempts, charge.seconds) for charge in found] == [((1,), 105), ((), 105), ((2,), 30)]
    assert found[1].run == "a" and found[1].spent["failed"] == found[1].billed
    assert sum(charge.billed for charge in found) == 4 * (105 + 105 + 30)


def test_of_two_incarnations_close_together_the_one_in_which_it_began_has_the_attempt():
    rows = [replace(ROW, seconds=3, state="REQUEUED"), replace(ROW, start=1004.0)]
    for began, expected in ((1000.5, 0), (1002.9, 0), (1004.0, 1), (1008.0, 1), (998.0, 0)):
        row = find_row(replace(ATTEMPT, began=began), rows)
        assert row is rows[expected], began
    assert find_row(replace(ATTEMPT, began=990.0), rows) is None


def test_an_attempt_that_the_accounting_does_not_know_yet_is_billed_by_the_ledger():
    second = replace(ATTEMPT, attempt=2, began=1300.0, seen=1350.0, restart=1)
    found, (note,) = charges([run(ATTEMPT, second)], [ROW])
    assert [(charge.source, charge.seconds) for charge in found] == [("sacct", 105), ("ledger", 50.0)]
    assert "no row yet for 1 attempt(s) of job 7" in note


def test_without_slurm_the_ledger_bills_processes_and_calls_them_so():
    (charge,), notes = charges([run(replace(ATTEMPT, job=None))], [])
    assert (charge.source, charge.unit, charge.billed) == ("ledger", "CPU process", 90 * 4) and not notes
    (charge,), _ = charges([run(replace(ATTEMPT, job=None, gpus=4, device="cuda"))], [])
    assert charge.unit == "GPU"


def test_two_runs_one_after_the_other_in_one_job_share_its_time_without_a_gap():
    second = replace(ATTEMPT, began=1060.0)
    found, _ = charges([run(replace(ATTEMPT, seen=1055.0)), run(second, name="b")], [ROW])
    assert [(charge.run, charge.seconds) for charge in found] == [("a", 60.0), ("b", 45.0)]
    assert sum(charge.billed for charge in found) == 420


def test_a_job_of_no_run_is_billed_and_nothing_is_claimed_of_it():
    (charge,), _ = charges([], [ROW])
    assert charge.run == "job x" and charge.spent["unknown"] == charge.billed == 420


def test_a_job_that_slurm_has_ended_does_not_run_whatever_its_lease_says():
    (charge,), _ = charges([run(replace(ATTEMPT, outcome="running"))], [ROW])
    assert charge.outcome == "died"
    (charge,), _ = charges([run(replace(ATTEMPT, outcome="running"))], [replace(ROW, state="RUNNING")])
    assert charge.outcome == "running"


def test_where_slurm_counts_no_gpus_the_runs_own_are_taken_and_said():
    (charge,), (note,) = charges([run(replace(ATTEMPT, gpus=4))], [replace(ROW, gpus=0)])
    assert (charge.unit, charge.devices) == ("GPU", 4) and "AccountingStorageTRES" in note


def test_a_node_whose_clock_differs_is_named():
    _, (note,) = charges([run(replace(ATTEMPT, seen=1300.0))], [ROW])
    assert "clock of job 7's node" in note and "195 s" in note


attempts = st.builds(
    Attempt,
    attempt=st.just(1),
    began=st.floats(990, 1300),
    seen=st.floats(1300, 1500),
    outcome=st.sampled_from(["finished", "stopped", "failed", "died", "running"]),
    from_step=st.none() | st.integers(0, 3),
    to_step=st.none() | st.integers(3, 9),
    job=st.sampled_from(["7", "8_1", None]),
    processes=st.integers(1, 9),
    gpus=st.integers(0, 9),
    seconds=st.dictionaries(st.sampled_from([*REASONS, "later"]), st.floats(0, 500)),
)
incarnations = st.builds(
    Row,
    job=st.sampled_from(["7", "8_1", "9"]),
    cluster=st.just("c"),
    user=st.just("ada"),
    state=st.sampled_from(["COMPLETED", "RUNNING", "REQUEUED", "NODE_FAIL"]),
    start=st.integers(900, 1400).map(float),
    seconds=st.integers(0, 400),
    gpus=st.integers(0, 8),
    name=st.just("x"),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(attempts, max_size=4),
    st.lists(attempts, max_size=4),
    st.lists(incarnations, max_size=4, unique_by=lambda row: (row.job, row.start)),
)
def test_all_rows_are_billed_exactly_once_and_all_parts_add_up(first, second, rows):
    found, _ = charges([run(*first), run(*second, name="b")], rows)
    for charge in found:
        assert sum(charge.spent.values()) == pytest.approx(charge.billed, abs=1e-6)
    for row in rows:
        own = [c for c in found if c.job == row.job and c.source == "sacct"]
        billed = sum(c.billed for c in own)
        expected = sum(r.seconds * r.gpus for r in rows if r.job == row.job)
        if all(r.gpus for r in rows if r.job == row.job):
            assert billed == pytest.approx(expected, abs=1e-6)
    assert sum(len(c.attempts) for c in found) == len(first) + len(second)
