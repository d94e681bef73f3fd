"""One run folder has one owner: a lease file, renewed each minute, taken over from the dead.

A lease is free when its process is gone and its host is ours, when it is older than five minutes,
or when it belongs to an earlier restart of the same Slurm job. Torch-free; rank 0 alone holds it.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsvlp.errors import RunError

log = logging.getLogger(__name__)

RENEW_SECONDS = 60.0
STALE_SECONDS = 300.0


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
        "job": environment.get("SLURM_JOB_ID"),
        "restart": int(environment.get("SLURM_RESTART_COUNT", "0")),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
    }


def is_free(lease: dict[str, Any], me: dict[str, Any], now: float) -> str | None:
    """Returns why a lease may be taken over, None where its owner may live.

    Args:
        lease: the file's content.
        me: `identity` of who asks.
        now: seconds since the epoch.
    """
    if lease["job"] is not None and lease["job"] == me["job"] and lease["restart"] < me["restart"]:
        return f"it belongs to restart {lease['restart']} of this job"
    if lease["host"] == me["host"]:
        start = process_start(lease["pid"])
        if start is None or start != lease["started"]:
            return f"its process {lease['pid']} is gone"
        return None
    age = now - lease["renewed"]
    return f"it was last renewed {age:.0f} s ago" if age > STALE_SECONDS else None


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
        self._notes |= values

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
                reason = is_free(other, self._me, time.time())
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
        job = f", Slurm job {other['job']}" if other["job"] else ""
        age = time.time() - other["renewed"]
        return RunError(
            f"{self._path.parent} belongs to process {other['pid']} on host {other['host']}{job}, "
            f"which renewed its lease {age:.0f} s ago",
            "a folder that no other run uses",
            "Wait for it, stop it, or choose another --run folder",
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
