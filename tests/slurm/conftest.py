"""A Slurm of two nodes for the tests of this folder, started once and stopped with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from dsvlp import slurm
from tests import small

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "mini_slurm.sh"
LEFT_ALONE = ("SLURM", "SBATCH", "SACCT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "DSVLP_")

SMALL = [*small.SVL, "batch.micro_pairs=8"]


class Cluster:
    """The running cluster, as its user sees it; every wait has a limit.

    Attributes:
        folder: its state, and the home of what tests write.
        environment: for commands of Slurm and of ours, without traces of another launcher.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(LEFT_ALONE)}
        self.environment: dict[str, str] = {
            **kept,
            "MINI_SLURM_DIR": str(folder),
            "MINI_SLURM_PORT": str(port),
            "SLURM_CONF": str(folder / "etc" / "slurm.conf"),
            "DSVLP_PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        }

    def tool(self, *arguments: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Runs tools/mini_slurm.sh."""
        return subprocess.run(
            ["bash", str(SCRIPT), *arguments],
            env=self.environment,
            timeout=seconds,
            capture_output=True,
            text=True,
        )

    def command(self, *command: str, seconds: float = 30, **extra: str) -> str:
        """Returns what a command of Slurm or ours prints; fails with what it says."""
        done = subprocess.run(
            command,
            env={**self.environment, **extra},
            cwd=self.folder,
            timeout=seconds,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def sbatch(self, *arguments: str, **environment: str) -> str:
        """Returns the number of a submitted job, whose output goes to `log`."""
        output = (
            f"--output={self.folder}/%A_%a.out" if _is_array(arguments) else f"--output={self.folder}/%j.out"
        )
        return self.command("sbatch", "--parsable", output, *arguments, **environment)

    def log(self, job: str) -> str:
        """Returns a job's output so far."""
        path = self.folder / f"{job}.out"
        return path.read_text(errors="replace") if path.exists() else "(no output)"

    def state(self, job: str) -> str | None:
        """Returns a job's state."""
        return self.fields(job).get("JobState")

    def fields(self, job: str) -> dict[str, str]:
        """Returns what Slurm knows of a job."""
        return slurm.parse_fields(self.command("scontrol", "show", "job", "--oneliner", job))

    def tell(self, job: str) -> str:
        """Returns what helps to understand a job that does not do what it should."""
        queue = self.command(
            "squeue", "--states=all", f"--jobs={job}", "--format=%T %r %N restarts, until %e"
        )
        nodes = self.command("sinfo", "--Node", "--noheader", "--partition=low", "--format=%N %T %E")
        controller = (self.folder / "log" / "slurmctld.log").read_text(errors="replace")
        return f"{queue}\n{nodes}\n{controller[-2000:]}\n{self.log(job)[-6000:]}"

    def restarts(self, job: str) -> int:
        """Returns how often Slurm has requeued a job."""
        return int(self.fields(job)["Restarts"])

    def wait(self, job: str, seconds: float) -> str:
        """Returns the state in which a job ended for good: a requeued one waits in the queue again."""
        found = ""

        def ended() -> bool:
            nonlocal found
            found = self.state(job) or ""
            return found in slurm.ENDED

        until(ended, seconds, f"job {job} to end", lambda: self.tell(job))
        return found

    def kill_node(self, number: int) -> None:
        """Cuts a node's power."""
        assert self.tool("kill-node", str(number)).returncode == 0

    def start_node(self, number: int) -> None:
        """Brings a node back."""
        assert self.tool("start-node", str(number)).returncode == 0


def _is_array(arguments: tuple[str, ...]) -> bool:
    return any(argument.startswith(("--array", "-a")) for argument in arguments)


def until(
    true: Callable[[], bool],
    seconds: float,
    what: str,
    told: Callable[[], str] = lambda: "",
    pause: float = 0.3,
) -> None:
    """Waits until something holds; fails with what was waited for."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}: {told()}"
        time.sleep(pause)


def processes_of(folder: Path) -> list[str]:
    """Returns the command lines of living processes that belong to the cluster in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if process.name != str(os.getpid()) and os.fsencode(folder) in environment + command:
            found.append(f"{process.name}: {command.replace(bytes(1), b' ').decode(errors='replace')}")
    return found


def start(environment: Mapping[str, str] = os.environ) -> Cluster:
    """Returns a new cluster; skips the test with the reason where this machine cannot have one."""
    if os.geteuid() != 0:
        pytest.skip("a Slurm on one machine needs root")
    if shutil.which("dpkg-query") is None:
        pytest.skip("tools/mini_slurm.sh needs Debian or Ubuntu")
    if any(shutil.which(name) is None for name in ("slurmctld", "slurmdbd", "mariadbd", "munged", "sbatch")):
        pytest.skip("Slurm's packages are absent: tools/mini_slurm.sh install")
    folder = Path(tempfile.mkdtemp(prefix="dsvlp-slurm-"))
    cluster = Cluster(folder, 18000 + 20 * (os.getpid() % 500))
    folder.chmod(0o755)
    done = cluster.tool("start")
    assert done.returncode == 0, done.stdout + done.stderr
    return cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Yields a running cluster; afterwards nothing of it runs."""
    cluster = start()
    try:
        yield cluster
    finally:
        done = cluster.tool("stop")
        left = processes_of(cluster.folder)
        shutil.rmtree(cluster.folder, ignore_errors=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not left, "\n".join(left)
