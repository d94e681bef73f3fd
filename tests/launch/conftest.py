"""Slurm's commands as small scripts: they write down what is asked of them, and say what a test wants."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

SINFO = "low*|2|gpu:4|infinite\nhigh|1|gpu:8|1:00:00\n"


class FakeSlurm:
    """A folder of stand-ins that comes first in PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.submitted = folder / "submitted"
        self.submitted.mkdir(parents=True)
        for name in ("srun", "scontrol", "scancel"):
            self.says(name, "")
        self.says("squeue", "")
        self.says("sinfo", SINFO)
        self.says("sacctmgr", "lab\n")
        self.fails("sacct", "Slurm accounting storage is disabled")
        self.script("sbatch", f'cp "${{@: -1}}" {self.submitted}/$RANDOM.sh; echo Submitted batch job 12')

    def script(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/bash\necho "$(basename "$0") $*" >> {self.folder}/calls\n{body}\n')
        path.chmod(0o755)

    def says(self, name: str, text: str) -> None:
        self.script(name, f"printf %s {shlex.quote(text)}")

    def fails(self, name: str, text: str) -> None:
        self.script(name, f"echo {shlex.quote(text)} >&2; exit 1")

    def calls(self, name: str) -> list[str]:
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.split()[0] == name]

    def scripts(self) -> list[str]:
        return [path.read_text() for path in self.submitted.iterdir()]


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}:/usr/bin:/bin")
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    return fake
