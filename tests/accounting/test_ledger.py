import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsvlp.accounting.ledger import (
    SILENT_SECONDS,
    append,
    describe,
    died,
    read_ledger,
    scan,
    write_failure,
)

ROOT = Path(__file__).parents[2]
BEGAN = {"event": "began", "attempt": 1, "began": 1000.0, "host": "here", "user": "ada", "processes": 2}
PROGRESS = {"from_step": 0, "to_step": 9, "samples": 90, "seconds": {"train": 20.0}}


def lease(folder: Path, **changes: object) -> dict:
    notes = {**{k: v for k, v in BEGAN.items() if k != "event"}, **PROGRESS}
    content = {"host": "elsewhere", "pid": 1, "renewed": 1030.0, "notes": notes, **changes}
    (folder / "lease.json").write_text(json.dumps(content))
    return content


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=30)
    return process.pid


def test_a_beginning_and_an_end_make_one_attempt(tmp_path):
    append(tmp_path, BEGAN)
    append(tmp_path, {"event": "ended", "attempt": 1, "seen": 1060.0, "outcome": "finished", **PROGRESS})
    ((attempt,), problems) = scan(tmp_path)
    assert not problems
    assert (attempt.outcome, attempt.ended, attempt.wall_seconds) == ("finished", 1060.0, 60.0)
    assert (attempt.user, attempt.processes, attempt.to_step) == ("ada", 2, 9)
    assert attempt.seconds == {"train": 20.0}


def test_a_run_without_a_ledger_has_no_attempts(tmp_path):
    assert read_ledger(tmp_path) == []


def test_a_living_attempt_is_told_by_its_lease(tmp_path):
    append(tmp_path, BEGAN)
    lease(tmp_path)
    ((attempt,), _) = scan(tmp_path, now=1031.0)
    assert (attempt.outcome, attempt.ended, attempt.to_step, attempt.seen) == ("running", None, 9, 1030.0)


def test_a_lease_that_is_no_longer_renewed_tells_how_far_the_dead_came(tmp_path):
    append(tmp_path, BEGAN)
    lease(tmp_path)
    ((attempt,), _) = scan(tmp_path, now=1031.0 + SILENT_SECONDS)
    assert (attempt.outcome, attempt.ended, attempt.to_step) == ("died", 1030.0, 9)
    assert attempt.seconds == {"train": 20.0}


def test_on_its_own_host_a_dead_process_is_seen_at_once(tmp_path):
    append(tmp_path, BEGAN)
    lease(tmp_path, host=socket.gethostname(), pid=dead_process())
    assert scan(tmp_path, now=1031.0)[0][0].outcome == "died"
    lease(tmp_path, host=socket.gethostname(), pid=os.getpid())
    assert scan(tmp_path, now=1031.0)[0][0].outcome == "running"


def test_the_next_owner_writes_down_what_the_dead_ones_lease_said(tmp_path):
    append(tmp_path, BEGAN)
    line = died(lease(tmp_path))
    assert line is not None
    append(tmp_path, line)
    (tmp_path / "lease.json").unlink()
    (attempt,) = read_ledger(tmp_path)
    assert (attempt.outcome, attempt.to_step, attempt.seen) == ("died", 9, 1030.0)
    assert died({"renewed": 1.0, "notes": {}}) is None


def test_without_a_lease_an_unended_attempt_died_and_nothing_more_is_known(tmp_path):
    append(tmp_path, BEGAN)
    (attempt,) = read_ledger(tmp_path)
    assert (attempt.outcome, attempt.wall_seconds, attempt.to_step) == ("died", 0.0, None)


def test_a_torn_line_is_reported_and_does_not_swallow_the_next(tmp_path):
    append(tmp_path, BEGAN)
    whole = (tmp_path / "ledger.jsonl").read_bytes()
    for cut in range(1, len(whole)):
        (tmp_path / "ledger.jsonl").write_bytes(whole + whole[:cut])
        attempts, problems = scan(tmp_path)
        assert len(attempts) == 1 and "torn" in problems[0]
        append(tmp_path, {**BEGAN, "attempt": 2})
        attempts, problems = scan(tmp_path)
        assert [each.attempt for each in attempts] == [1, 2]
        assert len(problems) == (cut < len(whole) - 1)  # cut at its end, the line was whole but for its end


def test_the_rank_that_failed_first_is_the_cause(tmp_path):
    append(tmp_path, BEGAN)
    write_failure(tmp_path, 1, 3, "ValueError: a bad picture")
    (attempt,) = read_ledger(tmp_path)
    assert (attempt.outcome, attempt.error, attempt.rank) == ("failed", "ValueError: a bad picture", 3)
    end = {"event": "ended", "attempt": 1, "outcome": "failed", "rank": 0, "error": "RuntimeError: peer gone"}
    append(tmp_path, {**end, "seen": time.time() + 5})
    (attempt,) = read_ledger(tmp_path)
    assert (attempt.error, attempt.rank) == ("ValueError: a bad picture", 3)
    append(tmp_path, {**end, "seen": 1001.0})  # rank 0 was first
    assert read_ledger(tmp_path)[0].error == "RuntimeError: peer gone"


def test_a_torn_failure_is_passed_over(tmp_path):
    append(tmp_path, BEGAN)
    write_failure(tmp_path, 1, 3, "ValueError: x")
    path = next((tmp_path / "failures").iterdir())
    path.write_text(path.read_text()[:-5])
    assert read_ledger(tmp_path)[0].outcome == "died"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("first\nsecond"), "ValueError: first"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (OSError("x" * 999), "OSError: " + "x" * 291),
    ],
)
def test_an_error_is_told_in_one_line(error, said):
    assert describe(error) == said


WRITER = """
import sys, time
from pathlib import Path
from dsvlp.accounting.ledger import append

for attempt in range(1, 10_000):
    append(Path(sys.argv[1]), {"event": "began", "attempt": attempt, "began": 1.0, "user": "x" * 3000})
    print(attempt, flush=True)
"""


def test_kill_9_loses_no_line_that_was_written_and_readers_may_look_meanwhile(tmp_path):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert writer.stdout is not None
    counts = []
    for _ in range(20):
        confirmed = int(writer.stdout.readline())
        attempts = scan(tmp_path)[0]
        assert [each.attempt for each in attempts] == list(range(1, len(attempts) + 1))
        assert len(attempts) >= confirmed
        counts.append(len(attempts))
    writer.send_signal(signal.SIGKILL)
    confirmed = max([counts[-1], *map(int, writer.stdout.read().split())])
    writer.wait(timeout=30)
    assert len(scan(tmp_path)[0]) >= confirmed


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_ledger_gives_whole_records_and_a_sentence_never_another_exception(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ledger")
    for number in (1, 2, 3):
        append(folder, {**BEGAN, "attempt": number})
        append(
            folder, {"event": "ended", "attempt": number, "seen": 1060.0, "outcome": "stopped", **PROGRESS}
        )
    path = folder / "ledger.jsonl"
    before, whole = scan(folder)[0], path.read_bytes()
    place, length = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 40))
    path.write_bytes(whole[:place] + data.draw(st.binary(max_size=40)) + whole[place + length :])
    found = {attempt.attempt: attempt for attempt in scan(folder)[0]}
    damaged = range(whole.count(b"\n", 0, place), whole.count(b"\n", 0, place + length) + 1)
    untouched = [each for each in before if not {2 * each.attempt - 2, 2 * each.attempt - 1} & set(damaged)]
    assert len(untouched) > 0
    for attempt in untouched:
        assert attempt.attempt in found
    for attempt in found.values():
        assert attempt.wall_seconds >= 0 and attempt.model_flops >= 0 and isinstance(attempt.outcome, str)
