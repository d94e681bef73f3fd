"""Runs a worker script of this folder on several processes, with a time limit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """Returns a port of the loopback interface that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(scratch: Path, **extra: str) -> dict[str, str]:
    """Returns an environment without a launcher's traces, with compiled extensions kept in `scratch`."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "TORCH_EXTENSIONS_DIR": str(scratch / "extensions"),
        "OMP_NUM_THREADS": "1",
        **extra,
    }


def run(script: str, *arguments: str, world: int, scratch: Path, seconds: float = 400.0) -> None:
    """Runs `tests/engine/<script>` once a rank; fails with the output of a rank that fails or hangs."""
    port = str(free_port())
    processes = []
    for rank in range(world):
        log = (scratch / f"{Path(script).stem}-{'-'.join(arguments[:1])}-{world}-{rank}.log").open("wb+")
        launcher = {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        worker = [str(ROOT / "tests" / "engine" / name) for name in ("one_rank.py", script)]
        command = [sys.executable, *worker, *arguments]
        process = subprocess.Popen(
            command, env=environment(scratch, **launcher, **meeting), stdout=log, stderr=subprocess.STDOUT
        )
        processes.append((process, log))
    deadline = time.monotonic() + seconds
    try:
        for process, _ in processes:
            process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process, _ in processes:
            process.kill()
            process.wait()
    for rank, (process, log) in enumerate(processes):
        log.seek(0)
        text = log.read().decode(errors="replace")[-6000:]
        log.close()
        assert process.returncode == 0, f"rank {rank} of {script} ended with {process.returncode}:\n{text}"
