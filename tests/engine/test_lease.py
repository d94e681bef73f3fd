import json
import os
import subprocess
import sys
import time

import pytest

from dsvlp.engine.lease import STALE_SECONDS, Lease, identity, is_free, process_start
from dsvlp.errors import RunError


def dead_process() -> int:
    """Returns the id of a process that has just ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=30)
    return process.pid


def write(folder, **changes):
    lease = {**identity({}), "renewed": time.time(), "notes": {}, **changes}
    (folder / "lease.json").write_text(json.dumps(lease))
    return lease


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path):
    write(tmp_path, pid=os.getppid(), started=process_start(os.getppid()))
    with pytest.raises(RunError, match=f"belongs to process {os.getppid()} on host"):
        Lease(tmp_path)
    assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getppid()


def test_a_dead_owners_lease_is_taken_with_its_notes(tmp_path):
    write(tmp_path, pid=dead_process(), notes={"attempt": 3})
    lease = Lease(tmp_path)
    assert lease.previous is not None and lease.previous["notes"] == {"attempt": 3}
    assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getpid()
    lease.release()
    assert list(tmp_path.iterdir()) == []


def test_a_reused_process_id_is_not_the_owner(tmp_path):
    write(tmp_path, pid=os.getppid(), started="1")
    Lease(tmp_path).release()


@pytest.mark.parametrize(
    ("other", "free"),
    [
        ({"host": "elsewhere", "age": 10}, False),
        ({"host": "elsewhere", "age": STALE_SECONDS + 1}, True),
        ({"host": "elsewhere", "age": 10, "job": "7", "restart": 0}, True),
        ({"host": "elsewhere", "age": 10, "job": "7", "restart": 1}, False),
        ({"host": "elsewhere", "age": 10, "job": "8", "restart": 0}, False),
    ],
)
def test_a_lease_of_another_host_is_free_when_stale_or_of_an_earlier_restart(other, free):
    me = {**identity({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}), "host": "here"}
    lease = {
        "job": None,
        "restart": 0,
        "pid": 1,
        "started": "1",
        "renewed": 1000.0 - other.pop("age"),
        **other,
    }
    assert (is_free(lease, me, 1000.0) is not None) == free


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
