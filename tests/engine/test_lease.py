import json
import os
import subprocess
import sys
import threading
import time

import pytest

from dsvlp import slurm
from dsvlp.engine import lease
from dsvlp.engine.lease import Lease, identity, is_free, process_start, slurm_says
from dsvlp.errors import RunError, SlurmError


def dead_process() -> int:
    """Returns the id of a process that has just ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=30)
    return process.pid


def write(folder, **changes):
    content = {**identity({}), "renewed": time.time(), "notes": {}, **changes}
    (folder / "lease.json").write_text(json.dumps(content))


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path):
    write(tmp_path, pid=os.getppid(), started=process_start(os.getppid()))
    with pytest.raises(RunError, match=f"belongs to process {os.getppid()} on host"):
        Lease(tmp_path)
    assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getppid()


def test_a_dead_owners_lease_is_taken_with_its_notes(tmp_path):
    write(tmp_path, pid=dead_process(), notes={"attempt": 3})
    taken = Lease(tmp_path)
    assert taken.previous is not None and taken.previous["notes"] == {"attempt": 3}
    assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getpid()
    taken.release()
    assert list(tmp_path.iterdir()) == []


def test_a_reused_process_id_is_not_the_owner(tmp_path):
    write(tmp_path, pid=os.getppid(), started="1")
    Lease(tmp_path).release()


JOB = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}
MEMBER = {"SLURM_JOB_ID": "31", "SLURM_ARRAY_JOB_ID": "30", "SLURM_ARRAY_TASK_ID": "2"}


def ask(other, environment=JOB, runs=None, silent=None):
    """Returns whether a lease of another host is free for who asks in `environment`."""
    me = {**identity(environment), "host": "here"}
    theirs = {"job": None, "restart": 0, "host": "elsewhere", "pid": 1, "started": "1", **other}
    return is_free(theirs, me, lambda: "silence" if silent else None, lambda job: runs) is not None


@pytest.mark.parametrize(
    ("other", "environment", "free"),
    [
        ({"job": "7", "restart": 0}, JOB, True),
        ({"job": "7", "restart": 1}, JOB, False),
        ({"job": "7", "restart": 2}, JOB, False),
        ({"job": "30_2", "restart": 0}, {**MEMBER, "SLURM_RESTART_COUNT": "1"}, True),
        ({"job": "30_1", "restart": 0}, {**MEMBER, "SLURM_RESTART_COUNT": "1"}, False),
    ],
)
def test_a_newer_restart_of_the_same_member_of_an_array_takes_over(other, environment, free):
    assert ask(other, environment) == free


@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize("runs", [True, False])
def test_what_slurm_says_of_another_job_counts_whatever_the_files_look_like(runs, silent):
    assert ask({"job": "8"}, runs=runs, silent=silent) == (not runs)


def test_what_our_slurm_does_not_know_of_another_clusters_job_frees_nothing():
    here = {**JOB, "SLURM_CLUSTER_NAME": "here"}
    assert ask({"job": "8", "cluster": "here"}, here, runs=False)
    for job in ("7", "8"):
        assert not ask({"job": job, "cluster": "there"}, here, runs=False)


@pytest.mark.parametrize("job", ["8", None])
def test_where_slurm_cannot_be_asked_silence_decides(job):
    assert ask({"job": job}, runs=None, silent=True)
    assert not ask({"job": job}, runs=None, silent=False)


@pytest.mark.parametrize(
    ("state", "runs"),
    [("RUNNING", True), ("COMPLETING", True), ("SUSPENDED", True), ("PENDING", False)]
    + [(state, False) for state in ("COMPLETED", "CANCELLED", "NODE_FAIL", None)],
)
def test_slurms_states_say_whether_a_job_may_still_write(monkeypatch, state, runs):
    monkeypatch.setattr(slurm, "is_available", lambda: True)
    monkeypatch.setattr(slurm, "job_state", lambda job: state)
    assert slurm_says("8") is runs


def test_a_controller_that_is_silent_says_nothing(monkeypatch):
    def down(job):
        raise SlurmError("no answer")

    monkeypatch.setattr(slurm, "is_available", lambda: True)
    monkeypatch.setattr(slurm, "job_state", down)
    assert slurm_says("8") is None


HOUR = 3600


@pytest.mark.parametrize("skew", [-HOUR, 0, HOUR])
def test_clocks_that_differ_by_an_hour_do_not_free_a_living_lease(tmp_path, monkeypatch, skew):
    monkeypatch.setattr(lease, "WATCH_SECONDS", 2.0)
    write(tmp_path, host="elsewhere", renewed=time.time() + skew)
    old = (tmp_path / "lease.json").stat().st_mtime
    os.utime(tmp_path / "lease.json", (old + skew, old + skew))
    owner = threading.Timer(0.7, lambda: write(tmp_path, host="elsewhere", renewed=time.time() + skew + 1))
    owner.start()
    with pytest.raises(RunError, match="on host elsewhere"):
        Lease(tmp_path)
    owner.join()


@pytest.mark.parametrize("skew", [-HOUR, HOUR])
def test_a_dead_lease_of_another_host_is_taken_after_it_was_watched(tmp_path, monkeypatch, skew):
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.5)
    write(tmp_path, host="elsewhere")
    os.utime(tmp_path / "lease.json", (time.time() + skew, time.time() + skew))
    taken = Lease(tmp_path)
    assert taken.previous["host"] == "elsewhere"
    taken.release()


def test_a_damaged_lease_is_an_error_of_ours(tmp_path):
    (tmp_path / "lease.json").write_text("{")
    with pytest.raises(RunError, match="is not a lease"):
        Lease(tmp_path)


RACER = """
import sys, time
from pathlib import Path
from dsvlp.engine.lease import Lease
from dsvlp.errors import RunError

try:
    Lease(Path(sys.argv[1]))
    print("mine", flush=True)
    time.sleep(3)
except RunError:
    print("refused")
"""


def test_of_many_that_see_a_dead_lease_one_gets_it(tmp_path):
    write(tmp_path, pid=dead_process())
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    said = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert sorted(said) == ["mine"] + ["refused"] * 5
