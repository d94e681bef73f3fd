"""Saves a checkpoint of 8 MB at every step until it is killed: `saver.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from dsvlp.engine.checkpoint import CheckpointStore
from dsvlp.engine.fragments import Fragment

if __name__ == "__main__":
    store = CheckpointStore(Path(sys.argv[1]), keep=1)
    found = store.load()
    step = found.step if found else 0
    while True:
        step += 1
        tensor = torch.full((2_000_000,), float(step))
        store.save(step, [Fragment("w", "weight", 0, tensor, (2_000_000,))], {"step": step})
