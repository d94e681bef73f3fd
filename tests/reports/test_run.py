import pytest

from dsvlp.accounting.ledger import append
from dsvlp.errors import RunError
from dsvlp.reports import html, run


def test_a_torn_last_line_is_no_record(folder):
    assert [line["step"] for line in run.read(folder).metrics] == [1, 2, 3]


def test_the_last_value_is_the_last_finite_one(folder):
    told = run.read(folder)
    assert told.last("loss/mlm") == 2.0
    assert told.last("loss/absent") is None
    assert told.curve("loss/mlm")[0] == [1, 2, 3]


def attempt(folder, number, outcome="died", **more):
    append(folder, {"event": "began", "attempt": number, "began": 1000.0, "processes": 2})
    end = {"event": "ended", "attempt": number, "seen": 2800.0, "outcome": outcome}
    append(folder, {**end, **more})


def test_hours_count_all_processes_of_all_attempts(folder):
    attempt(folder, 1)
    attempt(folder, 2)
    assert run.read(folder).device_hours() == 2.0


def test_an_attempt_is_shown_with_its_steps_its_error_and_its_time(folder):
    error = {"error": "ValueError: <x>", "from_step": 3, "to_step": 9}
    attempt(folder, 1, "failed", seconds={"train": 80.0, "save": 20.0, "pictures": 0.1}, **error)
    ((number, _, _, _, processes, steps, minutes, outcome, time),) = html.attempts(run.read(folder))
    assert (number, processes, steps, minutes) == ("1", 2, "3 to 9", 30.0)
    assert (outcome, time) == ("failed: ValueError: <x>", "train 80%, save 20%")
    assert "failed: ValueError: &lt;x&gt;" in html.page(run.read(folder))


def test_hours_on_a_cpu_are_named_so(folder):
    assert "CPU-hours, all attempts" in dict(html.summary(run.read(folder)))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"no recipe\.json"):
        run.read(tmp_path)


def test_a_damaged_file_is_named(folder):
    (folder / "scores.json").write_text("{")
    with pytest.raises(RunError, match=r"scores\.json is damaged"):
        run.read(folder)
