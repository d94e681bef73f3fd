"""Copies data sets and region features to a disk of the node, once a node, and removes them after the job.

    python -m dsvlp.launch.staging copy FOLDER SOURCE...
    python -m dsvlp.launch.staging remove FOLDER

Each file is checked against the manifest's SHA-256 as it lies on the new disk. A copy becomes visible
when it is whole. Where a disk has no space, or fails, the job goes on with the originals: staging is a
speed-up, never a reason to fail. Torch-free.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dsvlp import log as logs
from dsvlp.data import manifest
from dsvlp.data.features import manifest as features
from dsvlp.data.staged import copy_of
from dsvlp.errors import DataError

log = logging.getLogger("dsvlp.launch.staging")  # also where `python -m` calls it __main__

SPARE = 0.02
"""Share of a disk that is left free: a full one fails in other programs."""


def size_of(source: Path) -> int:
    """Returns the bytes of a data set: the files that its manifest names, and the vocabulary beside them."""
    return sum(path.stat().st_size for path in source.rglob("*") if path.is_file())


def stage(source: Path, folder: Path) -> Path | None:
    """Copies one data set; returns its copy, None where the original is to be read.

    Args:
        source: a `.beton` or a `.features` folder.
        folder: where this node's copies lie; made where absent.

    Raises:
        DataError: the original itself is damaged.
    """
    target = copy_of(source, folder)
    if (target / manifest.NAME).is_file():
        return target
    expected = features.load(source) if source.suffix == features.SUFFIX else manifest.load(source)
    partial = target.with_name(f".{target.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        if not _has_space(folder, size_of(source)):
            return None
        shutil.copytree(source, partial)
        for name, record in expected.files.items():
            manifest.check_blocks(partial / name, record)
        partial.rename(target)
    except (OSError, DataError) as error:
        log.warning("%s could not be staged in %s: %s; it is read where it is", source, folder, error)
        shutil.rmtree(partial, ignore_errors=True)
        return None
    log.info("%s is staged in %s: %.2f GB, every block checked", source, folder, size_of(target) / 1e9)
    return target


def _has_space(folder: Path, needed: int) -> bool:
    usage = shutil.disk_usage(folder)
    if usage.free - needed >= SPARE * usage.total:
        return True
    log.warning(
        "%s has %.2f GB free, the data set needs %.2f GB: it is read where it is",
        folder,
        usage.free / 1e9,
        needed / 1e9,
    )
    return False


def remove(folder: Path) -> None:
    """Removes a node's copies."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        log.warning("%s could not be removed from %s", folder, os.uname().nodename)


def main(arguments: Sequence[str]) -> int:
    """Returns 0 whatever the disk says; a damaged original is found by who reads it."""
    logs.setup(0)
    verb, folder, *sources = arguments
    if verb == "remove":
        remove(Path(folder))
        return 0
    for source in sources:
        try:
            stage(Path(source), Path(folder))
        except DataError as error:
            log.warning("%s is not staged: %s", source, error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
