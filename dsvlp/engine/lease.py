"""One run folder has one owner: a lease file, renewed each minute, taken over from the dead.

Whether its owner lives is asked where that is known: of Slurm, of our own host, and only then of the
file, which the living renew. The clocks of two nodes are never compared: ages are differences between
times that the file system itself wrote, and a lease that looks old is watched before it is taken.
Torch-free; rank 0 alone holds it.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsvlp import slurm
from dsvlp.errors import DsvlpError, RunError

log = logging.getLogger(__name__)

RENEW_SECONDS = 60.0
STALE_SECONDS = 300.0
WATCH_SECONDS = 2.5 * RENEW_SECONDS


def process_start(pid: int) -> str | None:
    """Returns when a local process started (kernel ticks), None where it is gone; tells a reused id apart."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]


def identity(environment: Mapping[str, str]) -> dict[str, Any]:
    """Returns who this process is: job, restart, host, process and its start."""
    return {
        "job": slurm.job_id(environment),
        "cluster": environment.get("SLURM_CLUSTER_NAME"),
        "restart": slurm.restart_count(environment),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
    }


def slurm_says(job: str) -> bool | None:
    """Returns whether Slurm still runs a job; None where it cannot be asked."""
    if not slurm.is_available():
        return None
    try:
        state = slurm.job_state(job)
    except DsvlpError as error:
        log.warning("Slurm does not tell whether job %s runs: %s", job, error)
        return None
    # A job in the queue runs nowhere; should it start, it finds the folder taken, and says so.
    return state is not None and state != "PENDING" and state not in slurm.ENDED


def is_free(
    lease: dict[str, Any],
    me: dict[str, Any],
    is_silent: Callable[[], str | None],
    job_runs: Callable[[str], bool | None] = slurm_says,
) -> str | None:
    """Returns why a lease may be taken over, None where its owner may live.

    Args:
        lease: the file's content.
        me: `identity` of who asks.
        is_silent: returns how one knows that the file is renewed no more, None where it may be.
        job_runs: whether Slurm runs a job, None where it cannot be asked.
    """
    job, restart = lease["job"], lease["restart"]
    of_our_cluster = job is not None and lease.get("cluster") == me["cluster"]  # two may share a file system
    if of_our_cluster and job == me["job"]:
        if restart < me["restart"]:
            return f"it belongs to restart {restart} of this job"
        if restart > me["restart"]:
            return None
    elif of_our_cluster:
        runs = job_runs(job)
        if runs is not None:
            return None if runs else f"Slurm runs its job {job} no more"
    if lease["host"] == me["host"]:
        start = process_start(lease["pid"])
        gone = start is None or start != lease["started"]
        return f"its process {lease['pid']} is gone" if gone else None
    return is_silent()


class Lease:
    """The held lease of a folder; `release` gives it back.

    Args:
        folder: the run's folder, which exists.
        environment: where Slurm's variables stand.

    Raises:
        RunError: another process owns the folder; names it.

    Attributes:
        previous: content of a dead owner's lease that was taken over, else None.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] = os.environ) -> None:
        self._path = folder / "lease.json"
        self._me = identity(environment)
        self._notes: dict[str, Any] = {}
        self.previous = self._take()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def note(self, **values: Any) -> None:
        """Remembers JSON values for a later owner, should this process die; written at the next renewal."""
        self._notes = self._notes | values  # a new dict: the thread may be writing the old one

    def renew(self) -> None:
        """Writes the time and the notes."""
        os.replace(self._write_aside(), self._path)

    def _is_ours(self) -> bool:
        owner = self._read()
        return owner is not None and all(owner[key] == value for key, value in self._me.items())

    def release(self) -> None:
        """Stops renewing and removes the file."""
        self._closed.set()
        self._thread.join(timeout=5)
        self._path.unlink(missing_ok=True)

    def _content(self) -> str:
        return json.dumps({**self._me, "renewed": time.time(), "notes": self._notes})

    def _write_aside(self) -> Path:
        aside = self._path.with_name(f".lease.{self._me['host']}.{self._me['pid']}")
        aside.write_text(self._content())
        return aside

    def _take(self) -> dict[str, Any] | None:
        """Returns the dead owner's lease, None where there was none."""
        aside, dead = self._write_aside(), None
        try:
            for _ in range(5):
                try:
                    os.link(aside, self._path)  # atomic, also on NFS: fails where the name exists
                    return dead
                except FileExistsError:
                    other = self._read()
                if other is None:
                    continue
                reason = is_free(other, self._me, self._silence)
                if reason is None:
                    raise self._refusal(other)
                log.warning(
                    "taking over the lease of process %s on %s: %s", other["pid"], other["host"], reason
                )
                if self._bury(other):
                    dead = other
        finally:
            aside.unlink(missing_ok=True)
        raise RunError(f"{self._path} appears and vanishes", "one owner", "Start one run at a time")

    def _silence(self) -> str | None:
        """Returns why the owner must be dead: its lease is old, and was not renewed while we watched."""
        probe = self._write_aside()
        try:
            age = probe.stat().st_mtime - self._path.stat().st_mtime  # by one clock, the file system's
        except FileNotFoundError:
            return None
        if 0 <= age <= STALE_SECONDS:
            return None
        before, deadline = self._read(), time.monotonic() + WATCH_SECONDS
        log.warning(
            "%s looks %.0f s old: watching for %.0f s whether it is renewed", self._path, age, WATCH_SECONDS
        )
        while time.monotonic() < deadline:
            if self._read() != before:
                return None
            time.sleep(min(1.0, WATCH_SECONDS / 10))
        return f"it is {age:.0f} s old, and was not renewed in {WATCH_SECONDS:.0f} s of watching"

    def _bury(self, dead: dict[str, Any]) -> bool:
        """Removes the dead owner's file; False where another process was faster and it is theirs by now."""
        grave = self._path.with_name(f".lease.dead.{self._me['host']}.{self._me['pid']}")
        try:
            os.rename(self._path, grave)  # of two processes that see the same dead lease one gets it
        except FileNotFoundError:
            return False
        same = json.loads(grave.read_text()) == dead
        if not same:
            os.link(grave, self._path)
        grave.unlink()
        return bool(same)

    def _read(self) -> dict[str, Any] | None:
        try:
            lease: dict[str, Any] = json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RunError(
                f"{self._path} is not a lease: {error}", fix="Remove it if no run uses the folder"
            ) from error
        return lease

    def _refusal(self, other: dict[str, Any]) -> RunError:
        job = f" of Slurm job {other['job']}" if other["job"] else ""
        stop = f"scancel {other['job']}" if other["job"] else f"kill {other['pid']} there"
        return RunError(
            f"{self._path.parent} belongs to process {other['pid']} on host {other['host']}{job}",
            "a folder that no other run uses",
            f"Wait for it, stop it (`{stop}`), or choose another --run folder",
        )

    def _keep(self) -> None:
        while not self._closed.wait(RENEW_SECONDS):
            try:
                if not self._is_ours():
                    log.critical(
                        "another process took the lease %s over while this one slept: ending", self._path
                    )
                    os._exit(1)  # two owners would write over each other's checkpoints
                self.renew()
            except OSError as error:
                log.warning("the lease %s could not be renewed: %s; trying again", self._path, error)
