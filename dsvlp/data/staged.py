"""Where a node keeps its own copies of data sets: the same bytes, read from a disk of its own.

`dsvlp.launch.staging` makes them before a job's ranks start, and names their folder in `DSVLP_STAGED`.
Each node decides for itself: where a copy is absent, the original is read. Torch-free.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from dsvlp.data import manifest

log = logging.getLogger(__name__)

STAGED = "DSVLP_STAGED"


def copy_of(source: Path, folder: Path) -> Path:
    """Returns where the copy of a data set belongs; the name follows from the original's path."""
    name = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:12]
    return folder / f"{name}-{source.name}"


def nearest(source: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Returns this node's copy of a data set where there is a complete one, else the data set itself."""
    folder = environment.get(STAGED)
    if not folder:
        return source
    copy = copy_of(source, Path(folder))
    if (copy / manifest.NAME).is_file():
        return copy
    log.warning("%s was not staged on this node: it is read where it is", source)
    return source
