"""A sweep's folder: `sweep.json`, the code, and one run's folder for each member.

SWEEP/sweep.json              what was asked for, and every submission
SWEEP/code/DIGEST/            the code that all members run
SWEEP/members/003-DIGEST/     the run of member 3, named by its recipe's digest
SWEEP/slurm/                  scripts, logs, pickles; private
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsvlp.accounting.ledger import read_ledger
from dsvlp.errors import RunError
from dsvlp.files import read_json, write_json
from dsvlp.launch.sbatch import Resources

MADE_BY = "`dsvlp.launch.sweep.submit`"


@dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
        index: its number, from 0.
        values: recipe key -> value.
        name: of its folder in `SWEEP/members/`.
    """

    index: int
    values: dict[str, Any]
    name: str


@dataclass(frozen=True)
class Submission:
    """One job or array of a sweep.

    Attributes:
        job: Slurm's number.
        members: indices of its members, in the order of the array.
    """

    job: str
    members: list[int]

    def jobs(self) -> dict[int, str]:
        """Returns member -> Slurm's name of its job."""
        if len(self.members) == 1:
            return {self.members[0]: self.job}
        return {index: f"{self.job}_{place}" for place, index in enumerate(self.members)}


@dataclass(frozen=True)
class Sweep:
    """What `sweep.json` says.

    Attributes:
        folder: the sweep's folder.
        recipe: what all members start from.
        resources: of each member.
        members: all of them.
        at_once: members that run at the same time.
        max_restarts: how often a failed member is started again by itself.
        budget_gpu_hours: of the whole sweep; None: no limit.
        code: name of the code's copy in `SWEEP/code/`.
        directory: where the members run: paths of the recipe may be relative to it.
        mounts: folders of the data, for a container.
        submissions: oldest first.
    """

    folder: Path
    recipe: str
    resources: Resources
    members: list[Member]
    at_once: int
    max_restarts: int
    budget_gpu_hours: float | None
    code: str
    directory: str
    mounts: list[str]
    submissions: list[Submission] = field(default_factory=list)

    def run(self, member: Member) -> Path:
        """Returns a member's run folder."""
        return self.folder / "members" / member.name

    def jobs(self, member: Member) -> list[str]:
        """Returns the jobs of a member, oldest first; also those that the requeuer submitted anew."""
        ours = [each.jobs()[member.index] for each in self.submissions if member.index in each.members]
        began = [attempt.job for attempt in read_ledger(self.run(member)) if attempt.job is not None]
        return list(dict.fromkeys([*ours, *began]))

    def write(self) -> None:
        """Writes `sweep.json`; raises `RunError` where the disk refuses."""
        tables = dataclasses.asdict(self)
        del tables["folder"]
        write_json(self.folder / "sweep.json", {"format": 1, **tables})


def read(folder: Path) -> Sweep:
    """Returns the sweep of a folder.

    Raises:
        RunError: there is none, or its file is damaged.
    """
    path = folder / "sweep.json"
    tables = read_json(path, MADE_BY)
    try:
        if tables.pop("format") != 1:
            raise ValueError("its format is not 1")
        tables["resources"] = Resources(**tables["resources"])
        tables["members"] = [Member(**member) for member in tables["members"]]
        tables["submissions"] = [Submission(**each) for each in tables["submissions"]]
        return Sweep(folder=folder.resolve(), **tables)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged: {error}", f"what {MADE_BY} wrote", "Restore it") from error
