"""Sweeps with stand-ins for Slurm's commands: what is written, submitted, refused, counted and shown."""

import json
import shutil
import time

import pytest

from dsvlp import recipe
from dsvlp.accounting import ledger, sacct
from dsvlp.cli import sweep as cli
from dsvlp.errors import RecipeError, RunError
from dsvlp.launch import budget, progress, sbatch, sweep, sweep_folder
from dsvlp.launch.sweep import Resources

FOUR = sweep.grid({"optimizer.lr": [1e-3, 1e-2], "seed": [0, 1]})


def submit(folder, members=FOUR, **more):
    more = {"at_once": 2, "max_restarts": 1, "overrides": ["schedule.steps=9"], **more}
    return sweep.submit("tiny_svl", members, folder, Resources(gpus=1, hours=0.5), **more)


def began(run, attempt: int, job: str, **end):
    """Writes an attempt's lines; without `end` it was killed."""
    now = time.time()
    ledger.append(run, {"event": "began", "attempt": attempt, "began": now - 360, "job": job, "host": "x"})
    if end:
        ledger.append(run, {"event": "ended", "attempt": attempt, "seen": now, **end})


def rows(*told: tuple[str, int]) -> str:
    """Returns sacct's answer: (job, seconds) on one GPU each."""
    same = {"User": "me", "State": "COMPLETED", "Start": "2026-01-01T00:00:00", "AllocTRES": "gres/gpu=1"}
    lines = [{**same, "JobID": job, "ElapsedRaw": str(seconds)} for job, seconds in told]
    cells = [sacct.FIELDS, *([line.get(name, "x") for name in sacct.FIELDS] for line in lines)]
    return "".join(sacct.DELIMITER.join([*line, *line]) + "\n" for line in cells)


def test_a_sweep_is_one_array_of_runs_in_folders_of_their_own(slurm, tmp_path):
    made = submit(tmp_path / "s", budget_gpu_hours=2)
    assert made == sweep_folder.read(tmp_path / "s")
    for member, values in zip(made.members, FOUR, strict=True):
        path = made.run(member) / "recipe.json"
        found = recipe.from_json(json.loads(path.read_text()), "")
        assert (found.optimizer.lr, found.seed) == (values["optimizer.lr"], values["seed"])
        assert found.schedule.steps == 9
        assert ledger.read_ledger(made.run(member)) == []
    (text,) = slurm.scripts()
    assert "--array=0-3%2" in text
    assert f"dsvlp.launch.budget {made.folder}" in text
    assert made.jobs(made.members[2]) == ["12_2"]
    assert (made.folder / "code" / made.code / "dsvlp" / "launch" / "sweep.py").is_file()


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([{"optimizer.lr": 1e-3}, {"optimizer.lrr": 1e-3}], "member 1 .*did you mean 'lr'"),
        ([{"seed": 1}, {"seed": 2}, {"seed": 1}], "members 0 and 2 are the same run"),
        ([{"batch.global_pairs": 64}, {"batch.global_pairs": 33}], "33 is not a multiple"),
        ([], "no members"),
    ],
)
def test_one_wrong_member_submits_and_writes_nothing(slurm, tmp_path, members, said):
    with pytest.raises(RecipeError, match=said):
        submit(tmp_path / "s", members)
    assert not (tmp_path / "s").exists() and not slurm.scripts()


def test_a_sweep_that_could_pass_its_budget_is_refused_or_will_stop(slurm, tmp_path):
    with pytest.raises(RunError, match=r"4 members x 1 GPUs x 0.5 h are 2 GPU-hours.*budget, 1.9"):
        submit(tmp_path / "s", budget_gpu_hours=1.9)
    assert not slurm.scripts()
    assert submit(tmp_path / "s", budget_gpu_hours=1.9, over_budget="stop").budget_gpu_hours == 1.9


def test_a_folder_that_holds_a_sweep_is_not_overwritten(slurm, tmp_path):
    submit(tmp_path / "s")
    with pytest.raises(RunError, match=r"is not empty.*sweep retry"):
        submit(tmp_path / "s")


def test_hours_are_slurms_over_all_incarnations_and_else_the_ledgers(slurm, tmp_path):
    made = submit(tmp_path / "s")
    began(made.run(made.members[0]), 1, "12_0", outcome="finished")
    slurm.says("sacct", rows(("12_0", 400), ("12_1", 1800), ("12_1", 3600)))
    assert budget.billed(made) == {0: pytest.approx(400 / 3600), 1: pytest.approx(1.5), 2: 0, 3: 0}
    slurm.fails("sacct", "accounting is disabled")
    assert budget.billed(made) == {0: pytest.approx(0.1, rel=0.01), 1: 0, 2: 0, 3: 0}


def test_at_the_budget_what_waits_is_cancelled_and_nothing_more_starts(slurm, tmp_path, monkeypatch):
    made = submit(tmp_path / "s", budget_gpu_hours=2)
    monkeypatch.setattr("sys.argv", ["budget", str(made.folder)])
    slurm.says("sacct", rows(("12_0", 7199)))
    assert budget.main() == 0 and not slurm.calls("scancel")
    slurm.says("sacct", rows(("12_0", 7200)))
    assert budget.main() == sbatch.OVER
    assert slurm.calls("scancel") == ["scancel --state=PENDING 12"]
    assert {each.state for each in progress.read(made)} == {"over budget"}


@pytest.mark.parametrize(
    ("outcome", "job", "knows", "over", "state"),
    [
        (None, "PENDING", True, False, "waiting"),
        (None, None, True, False, "never started"),
        (None, None, True, True, "over budget"),
        ("running", "RUNNING", True, False, "running"),
        ("running", None, True, False, "killed"),  # the lease of a dead node still looks alive
        ("running", None, False, False, "running"),
        ("died", "PENDING", True, False, "waiting"),
        ("died", "RUNNING", True, False, "running"),
        ("died", None, True, False, "killed"),
        ("failed", None, True, False, "failed"),
        ("stopped", None, True, False, "stopped"),
        ("stopped", "PENDING", True, True, "waiting"),
        ("stopped", None, True, True, "over budget"),
        ("finished", "COMPLETING", True, False, "finished"),
    ],
)
def test_a_members_state_is_the_ledgers_word_and_slurms(outcome, job, knows, over, state):
    attempts = [] if outcome is None else [ledger.Attempt(1, 0.0, 1.0, outcome)]
    assert progress.state(attempts, job, knows, over) == state


@pytest.fixture
def half_done(slurm, tmp_path):
    """Member 0 finished, 1 failed, 2 was killed, 3 waits."""
    made = submit(tmp_path / "s", budget_gpu_hours=4)
    runs = [made.run(member) for member in made.members]
    began(runs[0], 1, "12_0", outcome="finished")
    began(runs[1], 1, "12_1", outcome="failed", error="DataError: no such file")
    began(runs[2], 1, "12_2")
    slurm.says("squeue", "12_3|PENDING\n99|RUNNING\n")
    lines = [{"step": 3, "loss/total": 4.0}, {"step": 9, "loss/total": "nan", "validation/loss/total": 3.25}]
    (runs[0] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made


def test_the_table_shows_each_members_state_step_losses_and_hours(half_done, slurm):
    slurm.says("sacct", rows(("12_0", 720), ("12_2", 36)))
    told = progress.read(half_done)
    assert [each.state for each in told] == ["finished", "failed", "killed", "waiting"]
    first = told[0]
    assert (first.step, first.loss, first.validation, first.attempts) == (9, 4.0, 3.25, 1)
    table = cli.lines(half_done, told)
    assert "optimizer.lr" in table[0] and "0.2000" in table[0]
    assert "member 1: DataError: no such file" in table
    assert table[-2:] == ["lowest validation loss: member 0, 3.2500", "0.21 of 4 GPU-hours"]


def test_without_slurm_the_table_is_the_ledgers(half_done, monkeypatch, caplog):
    monkeypatch.setenv("PATH", "/nowhere")
    assert [each.state for each in progress.read(half_done)] == [
        "finished",
        "failed",
        "killed",
        "never started",
    ]
    assert "the ledgers alone are read" in caplog.text


def test_only_what_neither_finished_nor_waits_is_started_again(half_done, slurm):
    before = {p: p.read_bytes() for p in half_done.folder.rglob("members/*/*") if p.is_file()}
    slurm.script("sbatch", f'cp "${{@: -1}}" {slurm.submitted}/again.sh; echo Submitted batch job 20')
    again = sweep.retry(half_done.folder)
    assert again.submissions[-1] == sweep_folder.Submission("20", [1, 2])
    jobs = [again.jobs(member) for member in again.members]
    assert jobs == [["12_0"], ["12_1", "20_0"], ["12_2", "20_1"], ["12_3"]]
    text = (slurm.submitted / "again.sh").read_text()
    assert "--array=0-1%2" in text and f"/code/{half_done.code}$" in text
    assert {p: p.read_bytes() for p in before} == before


def test_a_retry_keeps_to_the_budget_and_may_raise_it(half_done, slurm):
    slurm.says("sacct", rows(("12_0", 3600 * 3 + 1800)))
    with pytest.raises(RunError, match=r"0.5 h and 3.5 spent are 4.5 GPU-hours.*budget, 4"):
        sweep.retry(half_done.folder)
    assert sweep.retry(half_done.folder, budget_gpu_hours=5).budget_gpu_hours == 5


def test_a_sweep_without_a_failed_member_has_nothing_to_retry(slurm, tmp_path):
    made = submit(tmp_path / "s")
    slurm.says("squeue", "".join(f"12_{i}|PENDING\n" for i in range(4)))
    with pytest.raises(RunError, match="all are waiting"):
        sweep.retry(made.folder)


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"format": 2}', '{"format": 1, "members": [{}]}'])
def test_a_damaged_sweep_is_one_sentence(slurm, tmp_path, damage):
    (tmp_path / "sweep.json").write_text(damage)
    with pytest.raises(RunError, match=r"sweep.json"):
        sweep_folder.read(tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        sweep_folder.read(tmp_path / "nowhere")


def test_the_worked_example_submits_eight_members(slurm, tmp_path, monkeypatch, capsys):
    example = sbatch.Path(__file__).parents[2] / "slurm" / "sweep.py"
    monkeypatch.setattr("sys.argv", ["sweep.py", str(tmp_path / "s")])
    exec(compile(example.read_text(), example, "exec"), {"__name__": "__main__"})
    assert "8 members" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "s")
