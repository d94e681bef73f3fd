"""Runs a worker script as one rank: `one_rank.py SCRIPT ARGUMENTS...`.

The rank leaves at once when its script has ended, as the ranks of `dsvlp train` do: gloo's threads
have been seen to abort a process in its exit handlers, long after its work was done and written.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from dsvlp.launch import local


def main() -> int:
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    local.leave(local.guard(main))
