"""Which code runs: a checkout's commit, or what a submission noted beside its copy of it. Torch-free."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds the package: a checkout, a copy of it, or site-packages."""

NOTE = "origin.json"
"""In the root of a copy: the state that the code had where it was copied from."""


def git_state() -> dict[str, str | bool] | None:
    """Returns commit and whether files differ from it; None where the package lies in no checkout."""
    try:
        noted = json.loads((ROOT / NOTE).read_text(encoding="utf-8"))
        return noted["git"]  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError):
        pass
    if not (ROOT / ".git").exists():
        return None
    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def git(*arguments: str, root: Path = ROOT) -> str:
    """Returns what git prints about a checkout.

    Raises:
        OSError, subprocess.SubprocessError: there is no git, it fails, or it hangs.
    """
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
