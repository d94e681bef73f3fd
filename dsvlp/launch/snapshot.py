"""Copies the running code into a folder, so that editing it while a job waits changes nothing.

Of a checkout the files that git knows or would add, as they are now, committed or not; of an
installed package its files. Each state has a folder of its own, named by its content: nothing is
ever overwritten under a job that runs from it, and the members of a sweep share one.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from dsvlp import __version__, origin
from dsvlp.errors import RunError
from dsvlp.files import write_json

FOLDERS = ("dsvlp", "ds_configs", "slurm")
"""What a job needs of a checkout; in an installed package the last two lie inside the first."""


def place(folder: Path, root: Path = origin.ROOT) -> Path:
    """Returns where `take` would copy the code to: `folder/DIGEST`."""
    return folder / fingerprint(root, files(root))


def take(folder: Path, root: Path = origin.ROOT) -> Path:
    """Returns `folder/DIGEST`, a copy of the code, made where it is not there yet.

    The copy's `origin.json` holds the commit, whether files differed from it, and the version.

    Args:
        folder: where the copies lie.
        root: the folder that holds the package.

    Raises:
        RunError: the folder cannot be written.
    """
    names = files(root)
    copy = folder / fingerprint(root, names)
    if copy.is_dir():
        return copy
    partial = folder / f".{copy.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for name in names:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, partial / name)
        write_json(partial / origin.NOTE, {"git": origin.git_state(), "version": __version__})
        partial.rename(copy)
    except OSError as error:
        raise RunError(
            f"the code cannot be copied to {copy}: {error.strerror}", fix="Check space and rights"
        ) from error
    return copy


def files(root: Path) -> list[str]:
    """Returns the names of the code's files below `root`, sorted."""
    if (root / ".git").exists():
        listed = ["ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *FOLDERS]
        try:
            names = origin.git(*listed, root=root).split("\0")
        except (OSError, subprocess.SubprocessError) as error:
            raise RunError(
                f"git does not list the files of {root}: {error}",
                "a checkout that git can read",
                "Run `git status` there: it says what is wrong",
            ) from error
        return sorted(name for name in names if name and (root / name).is_file())
    found = (path for name in FOLDERS for path in (root / name).rglob("*") if path.is_file())
    return sorted(str(path.relative_to(root)) for path in found if "__pycache__" not in path.parts)


def fingerprint(root: Path, names: list[str]) -> str:
    """Returns the first 12 hexadecimal digits of the SHA-256 over names and contents."""
    whole = hashlib.sha256()
    for name in names:
        content = hashlib.sha256((root / name).read_bytes()).hexdigest()
        whole.update(f"{name}\0{content}\n".encode())
    return whole.hexdigest()[:12]
