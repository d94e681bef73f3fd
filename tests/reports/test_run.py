import json

import pytest

from dsvlp.errors import RunError
from dsvlp.reports import html, run


def test_a_torn_last_line_is_no_record(folder):
    assert [line["step"] for line in run.read(folder).metrics] == [1, 2, 3]


def test_the_last_value_is_the_last_finite_one(folder):
    told = run.read(folder)
    assert told.last("loss/mlm") == 2.0
    assert told.last("loss/absent") is None
    assert told.curve("loss/mlm")[0] == [1, 2, 3]


def test_hours_count_all_processes_of_all_attempts(folder):
    attempt = {"seconds": 1800.0, "processes": 2, "outcome": "died"}
    (folder / "ledger.jsonl").write_text(2 * (json.dumps(attempt) + "\n"))
    assert run.read(folder).device_hours() == 2.0


def test_hours_of_a_run_under_way_are_the_clocks(folder):
    assert run.read(folder).device_hours() == 6.0 / 3600


def test_hours_on_a_cpu_are_named_so(folder):
    assert "CPU-hours, all attempts" in dict(html.summary(run.read(folder)))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"no recipe\.json"):
        run.read(tmp_path)


def test_a_damaged_file_is_named(folder):
    (folder / "scores.json").write_text("{")
    with pytest.raises(RunError, match=r"scores\.json is damaged"):
        run.read(folder)
