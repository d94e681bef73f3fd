import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsvlp import slurm
from dsvlp.errors import MissingDependency, SlurmError


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Returns a function that puts a program of Slurm's name, a shell script, first in the path."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    return write


def test_a_command_that_is_absent_is_named_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.is_available()
    with pytest.raises(MissingDependency, match=r"'squeue' is not on this machine.*mini_slurm"):
        slurm.job_state("1")


def test_a_command_that_fails_gives_its_own_words(program):
    program("scontrol", "echo 'Requested operation is presently disabled for job 7' >&2; exit 1")
    with pytest.raises(
        SlurmError, match="`scontrol requeue 7` failed: Requested operation is presently disabled"
    ):
        slurm.requeue("7")


def test_a_command_that_does_not_answer_is_ended(program):
    program("sacct", "exec sleep 60")
    begin = time.monotonic()
    with pytest.raises(SlurmError, match="no answer within 0 s"):
        slurm.sacct([], seconds=0.2)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("echo RUNNING", "RUNNING"),
        ("echo; exit 0", None),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", None),
    ],
)
def test_a_job_that_slurm_has_forgotten_has_no_state(program, script, state):
    program("squeue", script)
    assert slurm.job_state("7") == state


def test_a_controller_that_is_down_is_not_a_forgotten_job(program):
    program("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SlurmError, match="Unable to contact"):
        slurm.job_state("7")


@pytest.mark.parametrize(
    ("environment", "job", "restart"),
    [
        ({}, None, 0),
        ({"SLURM_JOB_ID": "12"}, "12", 0),
        ({"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, "12_3", 0),
        ({"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "2"}, "12", 2),
    ],
)
def test_a_job_is_named_as_slurm_prints_it(environment, job, restart):
    assert (slurm.job_id(environment), slurm.restart_count(environment)) == (job, restart)


LINE = (
    "JobId=2 JobName=my job UserId=root(0) JobState=RUNNING Reason=None NumNodes=2 NumTasks=1 CPUs/Task=1 "
    "EndTime=2026-11-22T16:06:00 NtasksPerN:B:S:C=0:0:*:* Command=/a b/x.sh seed=3 WorkDir=/tmp Power= \n"
)


def test_fields_are_read_though_values_hold_blanks():
    fields = slurm.parse_fields(LINE)
    assert fields["JobName"] == "my job" and fields["CPUs/Task"] == "1" and fields["Power"] == ""
    assert fields["Command"] == "/a b/x.sh seed=3" and fields["WorkDir"] == "/tmp"


@given(st.text(max_size=300))
def test_any_text_gives_fields_or_none(text):
    assert all(isinstance(value, str) for value in slurm.parse_fields(text).values())
    assert slurm.parse_time(text) is None or text
    assert slurm.parse_minutes(text) is None or slurm.parse_minutes(text) >= 0


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_time_limits_come_back_in_minutes(days, hours, minutes, seconds):
    whole = days * 1440 + hours * 60 + minutes + seconds / 60
    assert slurm.parse_minutes(f"{days}-{hours:02}:{minutes:02}:{seconds:02}") == pytest.approx(whole)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("30", 30), ("30:30", 30.5), ("1:00:00", 60), ("2-12", 3600), ("1-02:30", 1590), ("infinite", None)],
)
def test_shorter_time_limits_are_read_as_slurm_does(text, minutes):
    assert slurm.parse_minutes(text) == minutes


def test_partitions_count_their_nodes_by_gpus():
    told = "low*|2|gpu:4|infinite\nbig|30|gpu:h200:8(S:0-1)|1-00:00:00\nbig|10|(null)|1-00:00:00\n"
    low, big = slurm.parse_partitions(told)
    assert (low.name, low.nodes, low.gpus_per_node, low.time_limit_minutes, low.is_default) == (
        "low",
        2,
        4,
        None,
        True,
    )
    assert (big.name, big.nodes, big.gpus_per_node, big.time_limit_minutes) == ("big", 40, 8, 1440)
    assert [big.nodes_with(gpus) for gpus in (0, 8, 9)] == [40, 30, 0]


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("(null)", 0),
        ("", 0),
        ("gpu:4", 4),
        ("gpu", 1),
        ("gpu:h200:8(S:0-1),lustre:1", 8),
        ("gpu:a:2,gpu:b:3", 5),
    ],
)
def test_gpus_are_counted_over_their_types(gres, count):
    assert slurm.gpu_count(gres) == count
