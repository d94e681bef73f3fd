"""Starts one process a rank on this machine, where torchrun, deepspeed or srun did not. Torch-free.

Signals are forwarded; when one process fails the others get a moment to say why and are then
ended, since a rank that waits for a dead one waits for ever. Each child holds the reading end of a
pipe whose writing end is this process: should the launcher be killed, the children learn of it.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dsvlp import config, slurm
from dsvlp.engine.stop import SIGNALS, STOPPED
from dsvlp.errors import DsvlpError, RunError
from dsvlp.recipe import Recipe

log = logging.getLogger(__name__)

GRACE_SECONDS = 10.0
PORTS_TRIED, STRIDE = 20, 97
LIFELINE = "DSVLP_LIFELINE"


def is_launched(environment: Mapping[str, str]) -> bool:
    """Returns whether torchrun, deepspeed, srun or `launch` already started one process a rank."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return True
    # The batch script itself has SLURM_PROCID too; only a step started by srun has a step's task count.
    return "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment


def adopt_slurm(environment: MutableMapping[str, str]) -> None:
    """Writes the names that torch and DeepSpeed read where srun gave its own.

    Without them DeepSpeed looks for mpi4py. Where the batch script chose no port (`meeting_port`), it
    follows from the job alone, so that all nodes come to the same.
    """
    if "RANK" in environment or "SLURM_STEP_NUM_TASKS" not in environment:
        return
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    environment["WORLD_SIZE"] = environment["SLURM_STEP_NUM_TASKS"]
    environment.setdefault("MASTER_ADDR", first_host(environment.get("SLURM_STEP_NODELIST", "127.0.0.1")))
    environment.setdefault("MASTER_PORT", str(ports(environment)[0]))


def ports(environment: Mapping[str, str]) -> list[int]:
    """Returns the ports at which a job's ranks may meet, in the order in which to try them.

    They lie below those that the kernel hands out. The job's own number starts the list (members of an
    array have each one of their own), and a restart moves on: what held the port may still hold it.
    """
    job = int(environment.get("SLURM_JOB_ID") or 0)
    first = job + PORTS_TRIED * slurm.restart_count(environment)
    return [20000 + (first + STRIDE * n) % 10000 for n in range(PORTS_TRIED)]


def meeting_port(environment: Mapping[str, str]) -> int:
    """Returns the first of a job's ports that nobody holds on this node, which must be the ranks' first one.

    Raises:
        RunError: all are taken.
    """
    tried = ports(environment)
    for port in tried:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise RunError(f"the ports {', '.join(map(str, tried))} are taken", "a free one for the ranks to meet at")


def first_host(nodes: str) -> str:
    """Returns the first host of Slurm's short form, e.g. "gpu[03-05,9],x1" -> "gpu03"."""
    head = nodes.split("[", 1)
    if "," in head[0] or len(head) == 1:
        return head[0].split(",")[0]
    inside = head[1].split("]")[0]
    return head[0] + inside.split(",")[0].split("-")[0]


def new_run(name: str, recipe: Recipe) -> Path:
    """Returns a folder for a new run: `runs/NAME-TIME-DIGEST`."""
    return Path("runs") / f"{Path(name).stem}-{time.strftime('%Y%m%d-%H%M%S')}-{config.digest(recipe)}"


def default_processes(environment: Mapping[str, str] = os.environ) -> int:
    """Returns the number of visible GPUs, 1 where there is none."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return max(1, len([part for part in visible.split(",") if part.strip() not in ("", "-1")]))
    if shutil.which("nvidia-smi") is None:
        return 1
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 1
    return max(1, sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))


def free_port() -> int:
    """Returns a TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def child_environment(base: Mapping[str, str], rank: int, processes: int, port: int) -> dict[str, str]:
    """Returns the environment of one rank; CPU threads are shared out where the caller did not say."""
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    return {
        "OMP_NUM_THREADS": str(threads),
        **base,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def launch(command: list[str], processes: int, environment: Mapping[str, str] = os.environ) -> int:
    """Runs `command` once a rank and returns the exit code of the whole.

    Args:
        command: program and arguments, the same for each rank.
        processes: number of ranks.
        environment: what the ranks inherit.

    Returns:
        0 where all ended well, `STOPPED` where all stopped on request, else the first failure's code
        (128 + signal for one killed by a signal).

    Raises:
        RunError: `processes` is not positive.
    """
    if processes < 1:
        raise RunError(f"--nproc {processes}", "at least one process", "Give a positive number")
    reading, writing = os.pipe()
    port = free_port()
    children = [
        subprocess.Popen(
            command,
            env={**child_environment(environment, rank, processes, port), LIFELINE: str(reading)},
            # A session of its own: the terminal's Ctrl-C comes once, through us.
            start_new_session=True,
            pass_fds=(reading,),
        )
        for rank in range(processes)
    ]
    os.close(reading)

    def forward(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        return _wait(children)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _end(children)
        os.close(writing)


def _wait(children: list[subprocess.Popen[bytes]]) -> int:
    """Returns the exit code of the whole once all ended, or one failed and the grace is over."""
    failed: int | None = None
    deadline = 0.0
    while any(child.poll() is None for child in children):
        if failed is None:
            failed = next((r for r, c in enumerate(children) if c.poll() not in (None, 0, STOPPED)), None)
            deadline = time.monotonic() + GRACE_SECONDS
            if failed is not None and len(children) > 1:
                log.error(
                    "rank %d ended with %s; ending the others", failed, _describe(children[failed].returncode)
                )
        elif time.monotonic() > deadline:
            break
        time.sleep(0.05)
    codes = [child.poll() for child in children]
    if failed is None:
        failed = next((r for r, code in enumerate(codes) if code not in (0, STOPPED)), None)
    if failed is None:
        return max(code or 0 for code in codes)
    code = codes[failed] or 0
    return code if code > 0 else 128 - code


def _describe(code: int | None) -> str:
    return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"code {code}"


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """Kills what still runs. A polite signal would only set a flag in a rank that waits for a dead one."""
    for child in children:
        if child.poll() is None:
            child.kill()
    for child in children:
        child.wait()


def watch_lifeline(environment: Mapping[str, str] = os.environ) -> None:
    """In a child of `launch`: asks this process to stop (SIGTERM to itself) when the launcher is gone."""
    if LIFELINE not in environment:
        return
    descriptor = int(environment[LIFELINE])

    def wait() -> None:
        os.read(descriptor, 1)  # nobody writes: it returns when the last writing end is closed
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def guard(work: Callable[[], int]) -> int:
    """Returns the exit code of one rank's work, its errors logged: a rank does not go back to the shell."""
    try:
        return work()
    except DsvlpError as error:
        log.error("%s", error)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:  # the top of a rank's process
        log.exception("not an error that we foresaw")
        return 1


def leave(code: int) -> NoReturn:
    """Ends one rank at once, without exit handlers.

    After a failure they would wait: for a checkpoint that other ranks no longer write, for a
    communicator that is gone. After success all files are closed, and handlers of libraries have
    been seen to abort.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def own_command(arguments: list[str]) -> list[str]:
    """Returns the command that runs this program's verb again as one rank."""
    return [sys.executable, "-m", "dsvlp", *arguments]
