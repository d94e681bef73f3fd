"""A sweep's budget in GPU-hours: refused beforehand, and asked by each member before it starts.

Nothing watches in between: what has not started costs nothing, so the question is put where it
matters, in each batch script, by `python -m dsvlp.launch.budget SWEEP`. Where the budget is reached,
all members that wait are cancelled; those that run may go on to their time limit.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from dsvlp import log as logs
from dsvlp import slurm
from dsvlp.accounting import sacct
from dsvlp.accounting.ledger import read_ledger
from dsvlp.errors import MissingDependency, RunError, SlurmError
from dsvlp.files import write_json
from dsvlp.launch import sweep_folder
from dsvlp.launch.sbatch import OVER, Resources
from dsvlp.launch.sweep_folder import Sweep

log = logging.getLogger(__name__)

NOTE = "over_budget.json"
"""In the sweep's folder once its budget was reached."""


def check(requested: int, resources: Resources, spent: float, budget: float | None) -> None:
    """Raises `RunError` where members that use their whole time limit would pass the budget.

    Args:
        requested: members to start.
        resources: of each.
        spent: GPU-hours of the sweep so far.
        budget: GPU-hours; None: no limit.
    """
    total = spent + requested * resources.gpu_hours
    if budget is None or total <= budget * (1 + 1e-9):
        return
    asked = f"{requested} members x {resources.world} GPUs x {resources.hours:g} h"
    raise RunError(
        f"{asked}{f' and {spent:.4g} spent' if spent else ''} are {total:.4g} GPU-hours",
        f"no more than the budget, {budget:g}",
        "Ask for fewer members, fewer hours or a larger budget, or let it stop where it is reached "
        '(over_budget="stop")',
    )


def billed(sweep: Sweep) -> dict[int, float]:
    """Returns member -> GPU-hours of all its incarnations, running ones up to now.

    Slurm's count; where its accounting does not answer, the ledgers', without the seconds around a run.
    """
    jobs = {member.index: sweep.jobs(member) for member in sweep.members}
    try:
        rows = sacct.of_jobs(job for own in jobs.values() for job in own)
    except (SlurmError, MissingDependency) as error:
        log.warning("Slurm's accounting does not tell (%s): the ledgers are counted", error.found)
        return {member.index: _by_ledger(sweep, member) for member in sweep.members}
    seconds: dict[str, float] = {}
    for row in rows:
        seconds[row.job] = seconds.get(row.job, 0.0) + row.seconds * (row.gpus or sweep.resources.world)
    return {index: sum(seconds.get(job, 0.0) for job in own) / 3600 for index, own in jobs.items()}


def _by_ledger(sweep: Sweep, member: sweep_folder.Member) -> float:
    now = time.time()
    walls = [(each.ended or now) - each.began for each in read_ledger(sweep.run(member))]
    return sum(walls) * sweep.resources.world / 3600


def ask(sweep: Sweep) -> bool:
    """Returns whether a member may start; where not, cancels all that wait and notes it."""
    spent = sum(billed(sweep).values())
    if sweep.budget_gpu_hours is None or spent < sweep.budget_gpu_hours:
        return True
    log.warning(
        "the sweep has used %.4g of %g GPU-hours: what waits is cancelled", spent, sweep.budget_gpu_hours
    )
    write_json(sweep.folder / NOTE, {"spent_gpu_hours": spent, "at": time.time()})
    for each in sweep.submissions:
        try:
            slurm.run(["scancel", "--state=PENDING", each.job])
        except SlurmError as error:  # each member asks again when it starts
            log.warning("%s", error)
    return False


def main() -> int:
    """Returns `OVER` where the sweep named on the command line may start nothing more."""
    logs.setup()
    return 0 if ask(sweep_folder.read(Path(sys.argv[1]))) else OVER


if __name__ == "__main__":
    sys.exit(main())
