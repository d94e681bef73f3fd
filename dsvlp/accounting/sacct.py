"""What Slurm's accounting says of jobs: one row an incarnation, read strictly. Torch-free.

`sacct -X` alone shows a requeued job's last incarnation; `-D` shows them all. Every row is asked for
twice over, in one line: a line that was cut, mixed with another or damaged in one figure does not
look like its other half, so no damaged number is ever billed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from dsvlp import slurm
from dsvlp.errors import SlurmError

FIELDS = ("JobID", "Cluster", "User", "State", "Start", "ElapsedRaw", "AllocTRES", "JobName")
DELIMITER = "\x1f"  # a job's name may hold any printable character
AT_ONCE = 200  # jobs a call: a command line has a limit
EVER = "2000-01-01"
NO_TIME = ("Unknown", "None", "")


@dataclass(frozen=True)
class Row:
    """One incarnation of a job that was given resources.

    Attributes:
        job: "12", or "12_3" for a member of an array.
        cluster: whose job of this number it is.
        user: who submitted it.
        state: Slurm's word, "COMPLETED", "NODE_FAIL", ...
        start: epoch seconds at which it got its nodes; waiting in the queue is not in any row.
        seconds: wall seconds since, as of now where it runs.
        gpus: allocated GPUs on all its nodes.
        name: the job's name.
    """

    job: str
    cluster: str
    user: str
    state: str
    start: float
    seconds: int
    gpus: int
    name: str

    @property
    def is_running(self) -> bool:
        """Whether it holds its nodes still."""
        return self.state in ("RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING")

    @property
    def end(self) -> float:
        """Epoch seconds at which it gave its nodes back, or now."""
        return self.start + self.seconds


def of_jobs(jobs: Iterable[str]) -> list[Row]:
    """Returns every incarnation of the jobs that the accounting knows.

    Raises:
        SlurmError: accounting is disabled, does not answer, or what it said is damaged.
        MissingDependency: there is no sacct here.
    """
    wanted = sorted(set(jobs))
    chunks = [wanted[first : first + AT_ONCE] for first in range(0, len(wanted), AT_ONCE)]
    return [row for chunk in chunks for row in _ask("--starttime", EVER, "--jobs", ",".join(chunk))]


def of_user(user: str, since: datetime, until: datetime | None = None) -> list[Row]:
    """Returns every incarnation of a user's jobs that had nodes between two moments.

    Raises:
        SlurmError, MissingDependency: as `of_jobs`.
    """
    end = [] if until is None else ["--endtime", until.strftime("%Y-%m-%dT%H:%M:%S")]
    return _ask("--user", user, "--starttime", since.strftime("%Y-%m-%dT%H:%M:%S"), *end)


def _ask(*which: str) -> list[Row]:
    twice = ",".join(FIELDS * 2)
    shape = ["--allocations", "--duplicates", "--parsable2", f"--delimiter={DELIMITER}", f"--format={twice}"]
    return parse(slurm.sacct([*shape, *which]))


def parse(text: str) -> list[Row]:
    """Returns the rows of sacct's answer that had nodes, in its order, each once.

    Raises:
        SlurmError: a line is not what was asked for; names it.
    """
    head, *lines = text.split("\n")
    if head != DELIMITER.join(FIELDS * 2):
        raise _damaged("its first line", head)
    if not lines or lines[-1]:
        raise _damaged("its end: the last line is cut off", lines[-1] if lines else head)
    rows = (_row(number, line.split(DELIMITER)) for number, line in enumerate(lines[:-1], 2))
    return list(dict.fromkeys(row for row in rows if row is not None))


def _row(number: int, values: Sequence[str]) -> Row | None:
    """Returns a line's row, None for a job that waits or never had a node."""
    place, half = f"line {number}", len(FIELDS)
    if len(values) != 2 * half or values[:half] != values[half:]:
        raise _damaged(place, "|".join(values))
    job, cluster, user, state, start, elapsed, tres, name = values[:half]
    if not re.fullmatch(r"\d+(_(\d+|\[.*\]))?(\+\d+)?", job) or not re.fullmatch(r"[A-Z_]+( by .*)?", state):
        raise _damaged(place, f"job {job}, state {state}")
    if start in NO_TIME or state == "PENDING":  # which Slurm says, with a start, for seconds after one, too
        return None
    try:
        began = float(start) if start.isdigit() else datetime.fromisoformat(start).timestamp()
        seconds = int(elapsed)
    except (ValueError, OverflowError, OSError) as error:
        raise _damaged(place, f"start {start}, elapsed {elapsed}") from error
    if seconds < 0:
        raise _damaged(place, f"elapsed {elapsed}")
    return Row(job, cluster, user, state.split()[0], began, seconds, _gpus(place, tres), name)


def _gpus(place: str, tres: str) -> int:
    """Returns the GPUs of "billing=8,cpu=8,gres/gpu:h100=4,gres/gpu=4,node=2": their sum by type where there
    is no sum."""
    typed, whole = 0, None
    for part in filter(None, tres.split(",")):
        name, equals, value = part.partition("=")
        if not equals or (name.startswith("gres/gpu") and not value.isdigit()):
            raise _damaged(place, f"AllocTRES {tres}")
        if name == "gres/gpu":
            whole = int(value)
        elif name.startswith("gres/gpu:"):
            typed += int(value)
    return typed if whole is None else whole


def _damaged(place: str, found: str) -> SlurmError:
    return SlurmError(
        f"sacct's answer is damaged at {place}: {found[:120]!r}",
        "one whole line for each job",
        "Ask again; if it stays so, see whether slurmdbd has a problem",
    )
