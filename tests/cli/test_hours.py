import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsvlp.accounting.ledger import append
from tests.accounting.test_sacct import answer

ROOT = Path(__file__).parents[2]
TRES = "billing=2,cpu=2,gres/gpu=4,mem=200M,node=2"
BEGAN = 1795364162.0


def hours(folder: Path, *words: str, sacct: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the verb with torch made impossible to import, and a sacct that is this shell script, or none."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "sacct").unlink(missing_ok=True)
    if sacct is not None:
        (tools / "sacct").write_text(f"#!/bin/sh\n{sacct}\n")
        (tools / "sacct").chmod(stat.S_IRWXU)
    code = "import sys; sys.modules['torch'] = None; from dsvlp.cli.main import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, "hours", *words],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{tools}:/usr/bin:/bin" if sacct else str(tools),
            "PYTHONPATH": str(ROOT),
        },
    )


def says(folder: Path, *rows: tuple[str, ...]) -> str:
    """Returns a script that prints an answer of sacct."""
    (folder / "answer").write_text(answer(*rows))
    return f"cat {folder / 'answer'}"


def row(
    *, start: float = BEGAN - 10, seconds: int = 100, job: str = "7", state: str = "COMPLETED"
) -> tuple[str, ...]:
    return (job, "c", "ada", state, str(int(start)), str(seconds), TRES, "x")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    begin = {"event": "began", "attempt": 1, "began": BEGAN, "job": "7", "user": "ada", "processes": 4}
    append(folder, begin)
    seconds = {"startup": 5.0, "train": 60.0}
    end = {"seen": BEGAN + 80, "outcome": "finished", "from_step": 0, "to_step": 3, "seconds": seconds}
    append(folder, {"event": "ended", "attempt": 1, **end})
    (folder / "recipe.json").write_text(json.dumps({"model": {"kind": "svl"}}))
    return folder


def billed(folder: Path, *words: str, sacct: str | None) -> list[tuple[str, str, float]]:
    """Returns (run, source, device-seconds) of each charge."""
    done = hours(folder, *words, "--json", "out.json", sacct=sacct)
    assert done.returncode == 0, done.stderr
    told = json.loads((folder / "out.json").read_text())
    return [(charge["run"], charge["source"], charge["billed"]) for charge in told["charges"]]


def test_a_login_node_answers_in_half_a_second_without_torch(tmp_path, run):
    """Seconds of a CPU, ours and sacct's: the machine's load does not decide."""
    before = os.times()
    done = hours(tmp_path, "runs", sacct=says(tmp_path, row()))
    after = os.times()
    assert done.returncode == 0 and "runs/a" in done.stdout, done.stderr
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert 0 < used < 0.5


def test_slurms_rows_are_billed_and_the_runs_clock_says_what_for(tmp_path, run):
    assert billed(tmp_path, "runs/a", sacct=says(tmp_path, row())) == [("runs/a", "sacct", 400)]
    charge = json.loads((tmp_path / "out.json").read_text())["charges"][0]
    assert charge["spent"]["train"] == 240 and charge["spent"]["startup"] == 60
    assert charge["outcome"] == "finished" and charge["user"] == "ada"


def test_a_job_of_the_same_number_on_another_cluster_is_not_billed(tmp_path, run):
    begin = {"event": "began", "attempt": 1, "began": BEGAN, "job": "7", "cluster": "far", "processes": 4}
    append(run, begin)
    assert billed(tmp_path, "runs", sacct=says(tmp_path, row(), row(start=BEGAN + 900))) == [
        ("runs/a", "ledger", 320)
    ]


def test_a_job_younger_than_the_accounting_is_billed_by_the_ledger_and_said(tmp_path, run):
    script = says(tmp_path)
    assert billed(tmp_path, "runs", sacct=script) == [("runs/a", "ledger", 320)]
    assert "no row yet for 1 attempt(s) of job 7" in hours(tmp_path, "runs", sacct=script).stdout


@pytest.mark.parametrize(
    ("sacct", "sentence"),
    [
        ("echo Slurm accounting storage is disabled >&2; exit 1", "accounting storage is disabled"),
        ("cut -c1-150 answer | head -c 200", "damaged"),
        (None, "'sacct' is not on this machine"),
    ],
)
def test_where_the_accounting_cannot_tell_the_ledger_serves_and_says_why(tmp_path, run, sacct, sentence):
    says(tmp_path, row())
    assert billed(tmp_path, "runs", sacct=sacct) == [("runs/a", "ledger", 320)]
    assert sentence in hours(tmp_path, "runs", sacct=sacct).stdout


def test_without_folders_all_jobs_of_the_user_are_told_and_runs_below_runs_explained(tmp_path, run):
    other = ("9_1", "c", "ada", "FAILED", str(int(time.time()) - 50), "20", TRES, "other")
    script = says(tmp_path, row(), other)
    since = "2020-01-01"
    found = billed(tmp_path, "--user", "ada", "--since", since, sacct=script)
    assert sorted(found) == [("job other", "sacct", 80), ("runs/a", "sacct", 400)]
    assert billed(tmp_path, "--user", "bob", "--since", since, sacct=script) == []
    done = hours(tmp_path, "--user", "ada", sacct=None)
    assert done.returncode == 2 and "'sacct' is not on this machine" in done.stderr


def test_the_jobs_of_a_sweeps_members_are_billed_also_those_that_came_to_nothing(tmp_path, run):
    sweep = tmp_path / "lr"
    for name in ("000-a", "001-b"):
        (sweep / "members" / name).mkdir(parents=True)
        (sweep / "members" / name / "recipe.json").write_text("{}")
    members = [{"index": 0, "name": "000-a"}, {"index": 1, "name": "001-b"}]
    jobs = [{"job": "20", "members": [0, 1]}, {"job": "21", "members": [1]}]
    (sweep / "sweep.json").write_text(json.dumps({"members": members, "submissions": jobs}))
    script = says(tmp_path, *(row(job=job, state="FAILED") for job in ("20_0", "20_1", "21")))
    found = billed(tmp_path, "lr", sacct=script)
    assert sorted(found) == [
        ("lr/members/000-a", "sacct", 400),
        ("lr/members/001-b", "sacct", 400),
        ("lr/members/001-b", "sacct", 400),
    ]
    told = json.loads((tmp_path / "out.json").read_text())
    (line,) = told["sweeps"]
    assert (line["name"], line["spent"]["failed"]) == ("lr", line["billed"])


def test_the_job_of_a_submitted_run_that_never_began_is_billed(tmp_path, run):
    (tmp_path / "never" / "slurm").mkdir(parents=True)
    (tmp_path / "never" / "recipe.json").write_text("{}")
    (tmp_path / "never" / "slurm" / "submitted.json").write_text('{"job": "30"}')
    assert billed(tmp_path, "never", sacct=says(tmp_path, row(job="30"))) == [("never", "sacct", 400)]


def test_a_run_that_is_named_twice_is_billed_once_and_equal_names_are_kept_apart(tmp_path, run):
    shutil.copytree(tmp_path / "runs", tmp_path / "others")
    ledger = tmp_path / "others" / "a" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"job": "7"', '"job": "8"'))
    script = says(tmp_path, row(), row(job="8"))
    found = billed(tmp_path, "runs/a", "runs", "others/a", sacct=script)
    assert sorted(found) == [("others/a", "sacct", 400), ("runs/a", "sacct", 400)]


def test_a_window_cuts_what_sticks_out(tmp_path, run):
    until = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(BEGAN))
    assert billed(tmp_path, "runs", "--until", until, sacct=says(tmp_path, row())) == [
        ("runs/a", "sacct", 40)
    ]


def test_files_are_written_and_a_folder_without_a_run_is_named(tmp_path, run):
    done = hours(
        tmp_path, "runs", "--csv", "o.csv", "--picture", "o.png", "--week", sacct=says(tmp_path, row())
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o.csv").read_text().count("\n") == 2
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")
    done = hours(tmp_path, "tools", sacct=None)
    assert done.returncode == 2 and "tools holds no run" in done.stderr
    done = hours(tmp_path, "runs", "--json", "no/such/folder", sacct=None)
    assert done.returncode == 2 and "cannot be written" in done.stderr


def test_a_damaged_ledger_is_reported(tmp_path, run):
    with (run / "ledger.jsonl").open("a") as file:
        file.write('{"event": "beg')
    assert "torn line" in hours(tmp_path, "runs", sacct=None).stdout
