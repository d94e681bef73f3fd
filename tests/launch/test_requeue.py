import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsvlp import slurm
from dsvlp.accounting import ledger
from dsvlp.engine.stop import HUNG, STOPPED
from dsvlp.errors import SlurmError
from dsvlp.launch import requeue
from dsvlp.launch.requeue import Failure, decide, failures_of, resubmission, start_again, what_failed

KILLED = 128 + 9
codes = st.integers(1, 255).filter(lambda code: code not in (STOPPED, requeue.MENDABLE))
unknown = st.builds(Failure, st.integers(0, 99) | st.none(), st.none())
failures = st.lists(
    st.builds(Failure, st.integers(0, 99), st.sampled_from(["ValueError: x", "OSError: y", None])), min_size=1
)


@given(
    st.lists(unknown, max_size=30), st.integers(0, 30), st.sampled_from(["RUNNING", "PENDING", "COMPLETING"])
)
def test_a_finished_run_is_never_started_again(earlier, limit, state):
    assert not decide(0, earlier, limit, state=state).requeue


@given(failures, st.integers(0, 30))
def test_what_a_person_must_mend_is_not_tried_again(earlier, limit):
    assert not decide(requeue.MENDABLE, earlier, limit).requeue


@given(st.integers(0, 30))
def test_a_stop_on_request_is_no_failure(limit):
    assert decide(STOPPED, [], limit).requeue


@given(codes, st.lists(unknown, min_size=1, max_size=30), st.integers(0, 30))
def test_failures_of_unknown_cause_are_tried_again_so_often_and_no_more(code, found, limit):
    assert decide(code, found, limit).requeue == (len(found) <= limit)


@given(codes, failures, st.integers(1, 5), st.text(min_size=1))
def test_the_same_exception_at_the_same_step_twice_ends_it(code, earlier, step, error):
    last = Failure(step, error)
    decision = decide(code, [last, *earlier, last], 1000)
    assert not decision.requeue and error in decision.why


@given(codes, st.integers(0, 99), st.integers(0, 99))
def test_the_same_exception_at_another_step_does_not(code, one, other):
    if one != other:
        assert decide(code, [Failure(one, "ValueError: x"), Failure(other, "ValueError: x")], 5).requeue


@given(
    codes | st.just(STOPPED),
    st.sampled_from(["PENDING", "COMPLETING", "CANCELLED", "NODE_FAIL", "PREEMPTED", ""]),
)
def test_what_slurm_itself_ends_or_requeued_is_left_to_slurm(code, state):
    assert not decide(code, [Failure(None, None)], 20, state=state).requeue


@pytest.mark.parametrize("code", [STOPPED, KILLED, HUNG, 1])
def test_a_time_limit_is_no_cancellation(code):
    assert decide(code, [Failure(None, None)], 20, state="COMPLETING", reason="TimeLimit").requeue


def chain(outcomes: list[tuple[int, Failure]], limit: int) -> int:
    """Returns how many starts a job makes whose starts end as given, one after the other."""
    found = []
    for number, (code, failure) in enumerate(outcomes, 1):
        found += [failure] if code not in (0, STOPPED) else []
        if not decide(code, found, limit).requeue:
            return number
    return len(outcomes)


@given(st.lists(st.tuples(codes | st.just(STOPPED), unknown), min_size=1, max_size=60), st.integers(0, 10))
def test_stops_between_failures_neither_count_nor_forgive(outcomes, limit):
    failed = [n for n, (code, _) in enumerate(outcomes, 1) if code != STOPPED]
    expected = failed[limit] if len(failed) > limit else len(outcomes)
    assert chain(outcomes, limit) == expected


def ledger_of(folder, **attempt):
    """Writes an attempt's two lines."""
    base = {"attempt": 1, "job": "12_3", "restart": 1}
    ledger.append(folder, {"event": "began", "began": 1.0, **base})
    ledger.append(folder, {"event": "ended", "seen": 2.0, "outcome": "failed", **base, **attempt})


def test_where_it_failed_is_what_the_ledger_says_of_this_start(tmp_path):
    ledger_of(tmp_path, to_step=7, error="ValueError: x")
    assert what_failed(tmp_path, "12_3", 1) == Failure(7, "ValueError: x")
    assert what_failed(tmp_path, "12_3", 2) == Failure(None, None)
    assert what_failed(tmp_path / "absent", "12_3", 1) == Failure(None, None)


@pytest.fixture(autouse=True)
def no_setup(monkeypatch):
    """Leaves the log to pytest."""
    monkeypatch.setattr(requeue.logs, "setup", lambda rank: None)


@pytest.fixture
def job(monkeypatch, tmp_path):
    """Returns what was done for job 12, restart 1, which Slurm runs."""
    done = []
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", requeue.FIRST_JOB):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(slurm, "job_fields", lambda job: {"JobState": "RUNNING", "Reason": "None"})
    monkeypatch.setattr(slurm, "requeue", done.append)
    return done


def ask(folder, code, limit=3):
    return requeue.main(["--run", str(folder), "--exit-code", str(code), "--max-restarts", str(limit)])


def test_each_decision_is_written_down_and_failures_add_up(job, tmp_path):
    for code in (KILLED, STOPPED, KILLED, KILLED, KILLED):
        assert ask(tmp_path, code) == 0
    lines = [json.loads(line) for line in (tmp_path / "requeues.jsonl").open()]
    assert [line["requeue"] for line in lines] == [True, True, True, True, False]
    assert job == ["12"] * 4
    assert len(failures_of(tmp_path, "12")) == 4 and failures_of(tmp_path, "13") == []


def test_srun_that_gave_up_at_the_time_limit_did_not_finish(job, tmp_path, monkeypatch):
    ended = {"JobState": "COMPLETING", "Reason": "TimeLimit"}
    monkeypatch.setattr(slurm, "job_fields", lambda job: ended)
    assert ask(tmp_path, 0) == 0 and job == ["12"]
    assert len(failures_of(tmp_path, "12")) == 1


def test_a_failure_that_cannot_be_counted_is_not_tried_again(job, tmp_path):
    assert ask(tmp_path / "gone", KILLED) == requeue.MENDABLE and job == []
    assert ask(tmp_path / "gone", STOPPED) == 0 and job == ["12"]


def test_outside_of_a_job_nothing_is_done(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    assert ask(tmp_path, 1) == 0 and not list(tmp_path.iterdir())


FIELDS = {
    "JobName": "dsvlp",
    "Partition": "low",
    "Account": "lab",
    "QOS": "normal",
    "TimeLimit": "1-00:00:00",
} | {
    "WorkDir": "/home/me",
    "StdOut": "/home/me/dsvlp-12.out",
    "Command": "/home/me/my slurm/pretrain.sh tiny_svl seed=3",
}
ENVIRONMENT = {
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GPUS_PER_NODE": "4",
    "SLURM_RESTART_COUNT": "1",
    "PATH": "/bin",
    "SLURM_CONF": "/etc/s.conf",
}


def test_a_job_is_submitted_anew_with_the_resources_it_had():
    command = resubmission(FIELDS, ENVIRONMENT, ["tiny_svl", "seed=3"])
    assert command[:2] == ["sbatch", "--parsable"]
    assert command[-3:] == ["/home/me/my slurm/pretrain.sh", "tiny_svl", "seed=3"]
    wanted = {"--nodes=2", "--gpus-per-node=4", "--partition=low", "--account=lab", "--time=1-00:00:00"}
    assert wanted | {"--output=/home/me/dsvlp-12.out", "--dependency=afterany:12"} <= set(command)
    assert not [part for part in command if "=(null)" in part or part.endswith("=")]


def test_where_requeueing_is_forbidden_the_script_is_submitted_for_the_same_run(monkeypatch, tmp_path):
    def forbidden(job):
        raise SlurmError("Requested operation is presently disabled for job 12")

    told = {}

    def run(command, seconds=30, environment=None):
        told.update(command=command, environment=environment)
        return "13\n"

    monkeypatch.setattr(slurm, "requeue", forbidden)
    monkeypatch.setattr(slurm, "job_fields", lambda job: FIELDS)
    monkeypatch.setattr(slurm, "run", run)
    assert "job 13" in start_again("12", tmp_path, ["tiny_svl"], ENVIRONMENT)
    assert told["environment"] == {
        "PATH": "/bin",
        "SLURM_CONF": "/etc/s.conf",
        "DSVLP_RUN": str(tmp_path),
        requeue.FIRST_JOB: "12",
    }


def test_a_controller_that_does_not_answer_is_asked_again_and_not_for_ever(monkeypatch, tmp_path):
    asked = []

    def silent(job):
        asked.append(job)
        raise SlurmError("`scontrol requeue 12` gave no answer within 30 s")

    monkeypatch.setattr(slurm, "requeue", silent)
    monkeypatch.setattr(requeue, "PAUSE_SECONDS", 0.0)
    with pytest.raises(SlurmError, match="no answer"):
        start_again("12", tmp_path, [], ENVIRONMENT)
    assert len(asked) == requeue.TRIES
