import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsvlp import slurm
from dsvlp.accounting import sacct
from dsvlp.accounting.sacct import DELIMITER, FIELDS, parse
from dsvlp.errors import SlurmError

TRES = "billing=2,cpu=2,gres/gpu=4,mem=200M,node=2"


def line(*values: str) -> str:
    return DELIMITER.join(values * 2)


def answer(*rows: tuple[str, ...]) -> str:
    return "\n".join([line(*FIELDS), *(line(*row) for row in rows)]) + "\n"


ROWS = (
    ("1", "c", "ada", "REQUEUED", "2026-11-22T16:08:19", "3", TRES, "na|me"),
    ("1", "c", "ada", "NODE_FAIL", "2026-11-22T16:08:28", "5", TRES, "na|me"),
    ("1", "c", "ada", "PENDING", "Unknown", "0", "", "na|me"),
    (
        "2_0",
        "c",
        "ada",
        "CANCELLED by 1000",
        "2026-11-22T16:08:19",
        "7200",
        "cpu=1,gres/gpu:h100=1,node=1",
        "",
    ),
    ("2_[1-7%2]", "c", "ada", "PENDING", "Unknown", "0", "", "x"),
    ("2_8", "c", "ada", "PENDING", "2026-11-22T16:08:19", "2", "", "just started: the accounting lags"),
    ("3", "c", "bob", "RUNNING", "1795364162", "86461", "gres/gpu:a=1,gres/gpu:b=2,gres/gpu=3", "Ünï ☃"),
    ("4", "c", "bob", "COMPLETED", "2026-11-22T16:08:19", "2", "billing=1,cpu=1,mem=100M,node=1", "w"),
)


def test_every_incarnation_is_a_row_and_what_waits_is_none():
    rows = parse(answer(*ROWS))
    assert [(row.job, row.state, row.seconds, row.gpus) for row in rows] == [
        ("1", "REQUEUED", 3, 4),
        ("1", "NODE_FAIL", 5, 4),
        ("2_0", "CANCELLED", 7200, 1),
        ("3", "RUNNING", 86461, 3),
        ("4", "COMPLETED", 2, 0),
    ]
    assert rows[0].name == "na|me" and rows[1].start - rows[0].start == 9
    assert rows[0].end == rows[0].start + 3 and not rows[0].is_running and rows[3].is_running


def test_a_row_that_is_told_twice_is_billed_once():
    assert len(parse(answer(ROWS[0], ROWS[0]))) == 1


def test_an_answer_without_jobs_is_no_rows():
    assert parse(answer()) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "first line"),
        ("JobID|State\n", "first line"),
        (answer(*ROWS)[:-1], "cut off"),
        (answer(*ROWS)[:-9], "cut off"),
        (answer(("1", "c", "ada", "RUNNING", "yesterday", "3", TRES, "x")), "line 2"),
        (answer(("1", "c", "ada", "RUNNING", "2026-11-22T16:08:19", "-3", TRES, "x")), "line 2"),
        (answer(("1", "c", "ada", "RUNNING", "2026-11-22T16:08:19", "3", "gres/gpu=many", "x")), "line 2"),
        (answer(("one", "c", "ada", "RUNNING", "2026-11-22T16:08:19", "3", TRES, "x")), "line 2"),
    ],
)
def test_damage_is_named_with_its_place(text, place):
    with pytest.raises(SlurmError, match=place):
        parse(text)


@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_a_damaged_answer_gives_true_rows_or_our_error(data):
    """1,000 answers, each with up to three places cut out, overwritten or filled in.

    No number is believed that sacct did not say. A line that is lost whole is not missed here: the ledger
    then bills its attempt.
    """
    whole = answer(*ROWS)
    true = set(parse(whole))
    text = whole
    for _ in range(data.draw(st.integers(1, 3))):
        place, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 60))
        put = data.draw(st.text(alphabet="0123456789|,=_\n\x1f-TgU", max_size=6) | st.just(text[:40]))
        text = text[:place] + put + text[place + length :]
    try:
        rows = parse(text)
    except SlurmError:
        return
    assert set(rows) <= true


def test_many_jobs_are_asked_for_in_several_calls(monkeypatch):
    asked = []

    def answered(arguments: list[str]) -> str:
        jobs = arguments[arguments.index("--jobs") + 1].split(",")
        asked.append(jobs)
        return answer(
            *((job, "c", "ada", "COMPLETED", "2026-11-22T16:08:19", "3", TRES, "x") for job in jobs)
        )

    monkeypatch.setattr(slurm, "sacct", answered)
    rows = sacct.of_jobs([*(str(job) for job in range(500)), "7"])
    assert [len(jobs) for jobs in asked] == [200, 200, 100] and len(rows) == 500
