import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from dsvlp.engine.stop import STOPPED
from dsvlp.errors import RunError
from dsvlp.launch import local


def run(code: str, processes: int) -> int:
    return local.launch([sys.executable, "-c", code], processes)


def test_each_rank_learns_its_place_and_all_meet_at_one_port(tmp_path):
    code = (
        "import os, pathlib\n"
        "keys = 'RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT'.split()\n"
        f"path = pathlib.Path({str(tmp_path)!r}, os.environ['RANK'])\n"
        "path.write_text(' '.join(os.environ[key] for key in keys))"
    )
    assert run(code, 3) == 0
    lines = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [line[:4] for line in lines] == [[str(rank), str(rank), "3", "3"] for rank in range(3)]
    assert len({tuple(line[4:]) for line in lines}) == 1


def test_when_one_rank_fails_the_others_are_ended_and_its_code_comes_back(monkeypatch):
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.3)
    begin = time.monotonic()
    code = "import os, sys, time; sys.exit(7) if os.environ['RANK'] == '1' else time.sleep(60)"
    assert run(code, 3) == 7
    assert time.monotonic() - begin < 20


def test_a_killed_rank_gives_128_and_the_signal(monkeypatch):
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.3)
    code = "import os, time; os.kill(os.getpid(), 9) if os.environ['RANK'] == '0' else time.sleep(60)"
    assert run(code, 2) == 128 + 9


def test_stopped_ranks_give_the_reserved_code():
    assert run(f"import sys; sys.exit({STOPPED})", 2) == STOPPED


WAITING = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGUSR2, lambda *a: sys.exit(75))
from dsvlp.launch import local
local.watch_lifeline()
folder, rank = pathlib.Path(sys.argv[1]), os.environ['RANK']
signal.signal(signal.SIGTERM, lambda *a: ((folder / f'term-{rank}').touch(), os._exit(75)))
(folder / f'up-{rank}').touch()
time.sleep(60)
"""
LAUNCHER = """
import sys
from dsvlp.launch import local
sys.exit(local.launch([sys.executable, '-c', sys.argv[2], sys.argv[1]], 2))
"""


def start(tmp_path):
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path), WAITING])
    wait_for(tmp_path, "up-0", "up-1")
    return launcher


def wait_for(folder, *names):
    deadline = time.monotonic() + 30
    while not all((folder / name).exists() for name in names):
        assert time.monotonic() < deadline, f"waited in vain for {names}"
        time.sleep(0.05)


def test_signals_are_forwarded_to_all_ranks(tmp_path):
    launcher = start(tmp_path)
    launcher.send_signal(signal.SIGUSR2)
    assert launcher.wait(timeout=30) == STOPPED


def test_ranks_are_asked_to_stop_when_the_launcher_is_killed(tmp_path):
    launcher = start(tmp_path)
    launcher.kill()
    launcher.wait(timeout=30)
    wait_for(tmp_path, "term-0", "term-1")


def test_a_count_that_is_not_positive_is_refused():
    with pytest.raises(RunError, match="--nproc 0"):
        local.launch(["true"], 0)


@pytest.mark.parametrize(
    ("environment", "launched"),
    [
        ({}, False),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"SLURM_PROCID": "0", "SLURM_JOB_ID": "5", "SLURM_NTASKS": "8"}, False),  # the batch script itself
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, True),
    ],
)
def test_other_launchers_are_recognised(environment, launched):
    assert local.is_launched(environment) == launched


def test_sruns_names_become_torchs():
    environment = {
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_NODELIST": "gpu[03-05,9]",
        "SLURM_JOB_ID": "123456",
    }
    local.adopt_slurm(environment)
    assert (environment["RANK"], environment["LOCAL_RANK"], environment["WORLD_SIZE"]) == ("5", "1", "8")
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("gpu03", "23456")
    torchrun = {"RANK": "0", "SLURM_STEP_NUM_TASKS": "8"}
    local.adopt_slurm(torchrun)
    assert torchrun == {"RANK": "0", "SLURM_STEP_NUM_TASKS": "8"}


@pytest.mark.parametrize(
    ("short", "first"),
    [("a1", "a1"), ("a1,b2", "a1"), ("n[7,9]", "n7"), ("x,n[1-2]", "x"), ("n[08-11]", "n08")],
)
def test_the_first_host_of_slurms_short_form(short, first):
    assert local.first_host(short) == first


def test_visible_devices_decide_the_default(monkeypatch):
    assert local.default_processes({"CUDA_VISIBLE_DEVICES": "0,3"}) == 2
    assert local.default_processes({"CUDA_VISIBLE_DEVICES": ""}) == 1
    monkeypatch.setattr(local.shutil, "which", lambda name: None)
    assert local.default_processes({}) == 1


def test_the_launcher_needs_no_torch():
    code = "import sys; import dsvlp.launch.local; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, env=os.environ).returncode == 0


def test_two_jobs_of_a_node_meet_at_different_ports_and_a_restart_moves_on():
    jobs = [local.ports({"SLURM_JOB_ID": str(job)}) for job in range(100, 110)]
    assert len({ports[0] for ports in jobs}) == len(jobs)
    assert all(20000 <= port < 30000 for ports in jobs for port in ports)
    again = local.ports({"SLURM_JOB_ID": "100", "SLURM_RESTART_COUNT": "1"})
    assert again[0] != jobs[0][0]
    member = {"SLURM_JOB_ID": "105", "SLURM_ARRAY_JOB_ID": "100", "SLURM_ARRAY_TASK_ID": "4"}
    assert local.ports(member) == jobs[5], "Slurm gives each member of an array a number of its own"


def test_a_taken_port_is_passed_over():
    environment = {"SLURM_JOB_ID": "4711"}
    first = local.meeting_port(environment)
    with socket.socket() as taken:
        taken.bind(("", first))
        taken.listen()
        second = local.meeting_port(environment)
        assert second != first and second in local.ports(environment)
        adopted = {**environment, "MASTER_PORT": str(second), "SLURM_STEP_NUM_TASKS": "2"}
        adopted |= {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "n[1-2]"}
        local.adopt_slurm(adopted)
        assert (adopted["MASTER_ADDR"], adopted["MASTER_PORT"]) == ("n1", str(second))
