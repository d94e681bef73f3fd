"""`dsvlp doctor`: what this machine has, what is missing, and the command that mends it.

It must work on a broken installation, so every probe stands alone: libraries are looked up by their
metadata, and what needs an import (torch's view of the GPUs) runs in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import click
from packaging.requirements import Requirement

from dsvlp import __version__

TORCH_PROBE = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"gpus": gpus, "cuda": torch.version.cuda, "nccl": torch.distributed.is_nccl_available()}))
"""

DECODER_PROBE = """
import json
from dsvlp.data.decoders.open import states
print(json.dumps(states()))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        what: the thing that was looked for.
        found: its version or state.
        fix: the command that mends it; empty where all is well.
        needed: whether nothing works without it.
    """

    what: str
    found: str
    fix: str = ""
    needed: bool = True


@click.command()
def command() -> None:
    """Check this machine; exit code 1 when something that is needed is missing."""
    findings = [*_system(), *_libraries(), *_devices(), *_decoders(), *_programs()]
    for finding in findings:
        mark = "ok  " if not finding.fix else "MISS" if finding.needed else "note"
        click.echo(f"{mark}  {finding.what:22} {finding.found}")
        if finding.fix:
            click.echo(f"      -> {finding.fix}")
    missing = [finding.what for finding in findings if finding.fix and finding.needed]
    if missing:
        click.echo(f"\nMissing: {', '.join(missing)}.")
        sys.exit(1)
    click.echo("\nAll that dsvlp needs is here.")


def _system() -> Iterator[Finding]:
    yield Finding("dsvlp", __version__)
    right = (3, 11) <= sys.version_info < (3, 13)
    yield Finding(
        "Python",
        f"{platform.python_version()} at {sys.executable}",
        "" if right else "make the environment with Python 3.11 or 3.12",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding("machine", f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, {platform.platform()}")
    free = shutil.disk_usage(".").free / 2**30
    yield Finding(
        "disk here", f"{free:.0f} GiB free", "" if free > 2 else "free some space: checkpoints need it", False
    )


def _libraries() -> Iterator[Finding]:
    """Yields one finding for each requirement in dsvlp's own metadata."""
    try:
        texts = importlib.metadata.requires("dsvlp") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("installation", "dsvlp runs from a checkout that is not installed", "pip install -e .")
        return
    for text in texts:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate():
            yield examine(requirement)


def examine(requirement: Requirement) -> Finding:
    """Returns whether an installed distribution satisfies `requirement`."""
    fix = f"pip install '{requirement}'"
    if requirement.name == "ffcv":
        fix += " --no-build-isolation, after torch, numpy and pillow"
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(requirement.name, "not installed", fix)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, f"{version}, but dsvlp needs {requirement.specifier}", fix)
    return Finding(requirement.name, version)


def _devices() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    probe = _run([sys.executable, "-c", TORCH_PROBE], seconds=120)
    if probe is None:
        yield Finding("torch works", "import torch fails", f"{sys.executable} -c 'import torch' shows why")
        return
    seen = json.loads(probe.splitlines()[-1])
    if seen["gpus"]:
        yield Finding(
            "GPUs", f"{len(seen['gpus'])}: {', '.join(sorted(set(seen['gpus'])))}, CUDA {seen['cuda']}"
        )
        return
    driver = shutil.which("nvidia-smi")
    if driver is None:
        yield Finding("GPUs", "none; training runs on the CPU")
        return
    fix = (
        "install the CUDA build of torch that PyTorch's page 'Start locally' names for this driver"
        if seen["cuda"] is None
        else "nvidia-smi shows the driver's state; CUDA_VISIBLE_DEVICES may hide the GPUs"
    )
    yield Finding("GPUs", "the driver is here, but torch sees no GPU", fix, needed=False)


def _decoders() -> Iterator[Finding]:
    """Yields a finding for each backend that `data.decoder` may name; those on a GPU are tried there."""
    probe = _run([sys.executable, "-c", DECODER_PROBE], seconds=120)
    if probe is None:
        fix = f"{sys.executable} -c 'import dsvlp.data.decoders.open' shows why"
        yield Finding("JPEG decoders", "cannot be tried", fix, needed=False)
        return
    for name, (found, fix) in json.loads(probe.splitlines()[-1]).items():
        yield Finding(f"data.decoder {name}", found, fix, needed=False)


def _programs() -> Iterator[Finding]:
    compiler = shutil.which("g++") or shutil.which("c++")
    yield Finding(
        "C++ compiler",
        compiler or "none",
        "" if compiler else "apt-get install -y g++   (or conda install -c conda-forge cxx-compiler)",
        needed=False,
    )
    for program, use in (("sbatch", "Slurm"), ("git", "git")):
        version = _run([program, "--version"]) if shutil.which(program) else None
        yield Finding(use, version.strip() if version else f"no {program} here")


def _run(words: list[str], seconds: float = 20) -> str | None:
    """Returns what a program prints, None where it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
