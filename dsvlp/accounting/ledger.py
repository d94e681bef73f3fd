"""A run's ledger: what each attempt was, written so that a kill cannot lose it. Torch-free.

`ledger.jsonl` gets a line when an attempt begins and one when it ends, each on the disk before the
run goes on. How far a living attempt came stands in the notes of its lease, renewed each minute; of
a killed one they are what is known, and the next attempt's first act is to write them down here.
A rank that fails leaves a small file of its own, since rank 0 may be killed before it can tell, or
see no more of the cause than a broken connection. Reading is safe at any time, from anywhere.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SILENT_SECONDS = 300.0
"""A lease on another host that was not renewed for so long belongs to the dead."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run.

    Attributes:
        attempt: counts from 1.
        began: epoch seconds.
        seen: epoch seconds of its last sign of life: its end, or its lease's last renewal.
        outcome: "finished", "stopped" (on request, saved), "failed" (an exception), "died" (killed, or
            ended without a word), or "running".
        error: of a failed attempt, type and sentence of the first rank's exception.
        rank: which rank that was.
        from_step: steps the run had when this attempt went on; None where it never came so far.
        to_step: steps the run had at the last sign of life.
        job: Slurm's job, "12_3" for a member of an array; None without Slurm.
        cluster: the Slurm cluster whose job that is; None where Slurm did not say.
        restart: how often Slurm had requeued the job.
        host: where rank 0 ran.
        user: who ran it.
        processes: ranks.
        device: "cuda" or "cpu".
        device_name: the driver's name of rank 0's GPU.
        gpus: GPUs in use, 0 on CPU.
        peak_flops: FLOP/s of one device that MFU divides by; None where it came not so far.
        peak_kind: "peak" (data sheet) or "matmul" (a measured product).
        seconds: wall seconds of this attempt by phase, see `dsvlp.accounting.clock.PHASES`.
        samples: pairs trained on, those of `redone_samples` included.
        redone_samples: pairs that an earlier attempt had trained on already, lost by its end.
        flop_per_sample: model FLOP of a pair, forward and backward, at its mean real text length.
        joules: energy of all GPUs; None where NVML does not tell.
        sweep: the sweep that the run is a member of.
    """

    attempt: int
    began: float
    seen: float
    outcome: str
    error: str | None = None
    rank: int | None = None
    from_step: int | None = None
    to_step: int | None = None
    job: str | None = None
    cluster: str | None = None
    restart: int = 0
    host: str = ""
    user: str = ""
    processes: int = 1
    device: str = "cpu"
    device_name: str = ""
    gpus: int = 0
    peak_flops: float | None = None
    peak_kind: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0
    redone_samples: int = 0
    flop_per_sample: float | None = None
    joules: float | None = None
    sweep: str | None = None

    @property
    def ended(self) -> float | None:
        """Epoch seconds of its end, None while it runs."""
        return None if self.outcome == "running" else self.seen

    @property
    def step(self) -> int | None:
        """Steps made when it ended: where a failed attempt failed."""
        return self.to_step

    @property
    def wall_seconds(self) -> float:
        """Seconds from its beginning to its last sign of life."""
        return max(0.0, self.seen - self.began)

    @property
    def model_flops(self) -> float:
        """Model FLOP of all samples; 0 where the price of one is not known."""
        return self.samples * (self.flop_per_sample or 0.0)


_NUMBERS = {"began", "seen", "peak_flops", "flop_per_sample", "joules"}
_COUNTS = {"attempt", "rank", "from_step", "to_step", "restart", "processes", "gpus"}
_COUNTS |= {"samples", "redone_samples"}
_OUTCOMES = ("finished", "stopped", "failed", "died")
_OPTIONAL = {each.name for each in fields(Attempt) if each.default is None}
_NAMES = {each.name for each in fields(Attempt)}


def read_ledger(folder: Path) -> list[Attempt]:
    """Returns a run's attempts, oldest first; what could not be read is logged."""
    attempts, problems = scan(folder)
    for problem in problems:
        log.warning("%s", problem)
    return attempts


def scan(folder: Path, now: float | None = None) -> tuple[list[Attempt], list[str]]:
    """Returns (attempts, oldest first; a sentence for each line that could not be read).

    Args:
        folder: the run's folder; without a ledger it has no attempts.
        now: epoch seconds, for telling the living from the dead.
    """
    merged, problems = _merge(folder / "ledger.jsonl")
    lease, failures = _lease(folder), _failures(folder)
    for number, record in merged.items():
        if "outcome" not in record:
            record |= _unended(record, lease, time.time() if now is None else now)
        if number in failures and record["outcome"] in ("failed", "died"):
            record |= _first_cause(record, failures[number])
    return [Attempt(**merged[number]) for number in sorted(merged)], problems


def append(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes one line, on the disk when this returns; a torn line before it does not swallow it.

    Raises:
        OSError: the disk refuses.
    """
    path = folder / "ledger.jsonl"
    is_new = not path.exists()
    line = json.dumps(record).encode() + b"\n"
    with path.open("ab+", buffering=0) as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
        os.fsync(file.fileno())
    if is_new:
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def died(lease: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the line that ends the attempt of a dead owner's lease; None where it had not begun one."""
    notes = lease.get("notes") or {}
    if "attempt" not in notes:
        return None
    return {**notes, "event": "ended", "seen": lease["renewed"], "outcome": "died"}


def write_failure(folder: Path, attempt: int, rank: int, error: str) -> None:
    """Leaves a rank's failure for the readers of the ledger.

    Raises:
        OSError: the disk refuses.
    """
    (folder / "failures").mkdir(exist_ok=True)
    path = folder / "failures" / f"attempt-{attempt:04d}-rank-{rank:05d}.json"
    text = json.dumps({"attempt": attempt, "rank": rank, "seen": time.time(), "error": error})
    path.write_text(text, encoding="utf-8")


def user_name(environment: Mapping[str, str] = os.environ) -> str:
    """Returns the user's name; in a container without a table of users, Slurm's word or the number."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return environment.get("SLURM_JOB_USER", str(os.getuid()))


def sweep_of(folder: Path) -> str | None:
    """Returns the sweep that a run's folder lies in (`SWEEP/members/RUN`), None for a run of its own."""
    sweep = folder.resolve().parent.parent
    return sweep.name if (sweep / "sweep.json").is_file() else None


def describe(error: BaseException) -> str:
    """Returns type and first line of an exception, at most 300 characters."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])[:300]


def _merge(path: Path) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """Returns (attempt -> what its lines say, a sentence for each line that is no record)."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}, []
    *whole, torn = text.split("\n")
    problems = [f"{path} ends in a torn line, as a kill leaves it: the line is left out"] if torn else []
    merged: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(whole, 1):
        record = _record(line)
        if record is not None and (record["attempt"] in merged or "began" in record):
            merged.setdefault(record["attempt"], {}).update(record)
        elif line:
            problems.append(f"{path}, line {number} is no record of an attempt: the line is left out")
    return merged, problems


def _record(line: str) -> dict[str, Any] | None:
    """Returns the fields of an attempt that a line holds, None where one of them cannot be right."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("event") not in ("began", "ended"):
        return None
    if found["event"] == "ended" and not {"seen", "outcome"} <= found.keys():
        return None
    record = {name: value for name, value in found.items() if name in _NAMES}
    is_right = "attempt" in record and all(_fits(name, value) for name, value in record.items())
    return record if is_right else None


def _fits(name: str, value: object) -> bool:
    if value is None:
        return name in _OPTIONAL
    if isinstance(value, bool):
        return False
    if name == "seconds":
        return isinstance(value, dict) and all(_fits("began", seconds) for seconds in value.values())
    if name in _COUNTS:
        return isinstance(value, int) and value >= 0
    if name in _NUMBERS:
        return isinstance(value, int | float) and 0 <= value < float("inf")
    return isinstance(value, str) and (name != "outcome" or value in _OUTCOMES)


def _unended(record: dict[str, Any], lease: dict[str, Any] | None, now: float) -> dict[str, Any]:
    """Returns what is known of an attempt without a last line: what its lease says, where there is one."""
    notes = (lease or {}).get("notes") or {}
    if lease is None or notes.get("attempt") != record["attempt"]:
        return {"seen": record["began"], "outcome": "died"}
    known = {name: value for name, value in notes.items() if name in _NAMES and _fits(name, value)}
    return {**known, "seen": lease["renewed"], "outcome": "running" if _is_alive(lease, now) else "died"}


def _is_alive(lease: dict[str, Any], now: float) -> bool:
    if lease.get("host") == socket.gethostname() and not Path(f"/proc/{lease.get('pid')}").exists():
        return False
    return bool(now - lease["renewed"] < SILENT_SECONDS)


def _lease(folder: Path) -> dict[str, Any] | None:
    try:
        lease = json.loads((folder / "lease.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_whole = isinstance(lease, dict) and isinstance(lease.get("renewed"), int | float)
    return lease if is_whole else None


def _failures(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """Returns attempt -> what its ranks left, the earliest first."""
    out: dict[int, list[dict[str, Any]]] = {}
    for path in sorted((folder / "failures").glob("attempt-*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            out.setdefault(int(found["attempt"]), []).append(
                {"seen": float(found["seen"]), "rank": int(found["rank"]), "error": str(found["error"])}
            )
        except (OSError, ValueError, KeyError, TypeError):  # torn: the rank was killed while it wrote
            continue
    return {attempt: sorted(found, key=lambda failure: failure["seen"]) for attempt, found in out.items()}


def _first_cause(record: dict[str, Any], failures: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the error of the rank that failed first, and the last moment that any rank told of."""
    last = max(record["seen"], failures[-1]["seen"])
    if record.get("error") is not None and record["seen"] < failures[0]["seen"]:
        return {"seen": last}
    return {"outcome": "failed", "error": failures[0]["error"], "rank": failures[0]["rank"], "seen": last}
