"""Logging: the rank is in the line, rank 0 speaks at INFO, the others at WARNING, every rank to its file."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path


def setup(rank: int = 0, folder: Path | None = None) -> None:
    """Sends the project's log to standard error and, where `folder` is given, to `folder/rank-N.log`."""
    root = logging.getLogger("dsvlp")
    root.setLevel(logging.DEBUG)
    root.propagate = False
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    form = logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(os.environ.get("DSVLP_LOG", "INFO" if rank == 0 else "WARNING"))
    handlers: list[logging.Handler] = [console]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(folder / f"rank-{rank}.log", encoding="utf-8")
        to_file.setLevel(logging.INFO)
        handlers.append(to_file)
    for handler in handlers:
        handler.setFormatter(form)
        root.addHandler(handler)
