"""Run in a job by test_hours.py: a run that trains nothing but keeps lease, clock and ledger as a run does.

`ledger_job.py RUN FIRST_STEP STEPS SECONDS_A_STEP OUTCOME`; outcomes: finished, stopped, failed, hang (sleeps
until it is killed). Torch-free.
"""

import os
import socket
import sys
import time
from pathlib import Path

from dsvlp.accounting import ledger
from dsvlp.accounting.clock import Clock
from dsvlp.engine.lease import Lease, identity


def main(folder: Path, first: int, steps: int, seconds: float, outcome: str) -> None:
    began, clock = time.time(), Clock(1)
    folder.mkdir(parents=True, exist_ok=True)
    lease = Lease(folder)
    line = None if lease.previous is None else ledger.died(lease.previous)
    if line is not None:
        ledger.append(folder, line)
    earlier = ledger.read_ledger(folder)
    made = max((each.to_step or 0 for each in earlier), default=0)
    me = identity(os.environ)
    notes = {
        "attempt": len(earlier) + 1,
        "began": began,
        **{name: me[name] for name in ("job", "restart")},
        "host": socket.gethostname(),
        "user": "root",
        "processes": int(os.environ.get("SLURM_NTASKS", "1")),
        "from_step": first,
    }
    ledger.append(folder, {"event": "began", **notes})
    lease.note(**notes)
    for step in range(first + 1, first + steps + 1):
        with clock.phase("redone" if step <= made else "train"):
            time.sleep(seconds)
        redone = max(0, min(step, made) - first)
        lease.note(to_step=step, samples=step - first, redone_samples=redone, seconds=dict(clock.own))
        notes |= {"to_step": step, "samples": step - first, "redone_samples": redone}
    lease.renew()
    if outcome == "hang":
        time.sleep(300)
    clock.tick()
    end = {"event": "ended", "seen": time.time(), "outcome": outcome, "seconds": clock.own}
    ledger.append(folder, {**notes, **end})
    lease.release()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
