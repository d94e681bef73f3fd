"""A bench's result as JSON: figures, and all that they depend on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from dsvlp.engine.bench_figures import FORMAT, Figure
from dsvlp.engine.run_folder import versions
from dsvlp.origin import git_state

_CPUINFO = Path("/proc/cpuinfo")


def result(
    bench: str,
    figures: list[Figure],
    settings: dict[str, Any],
    device: torch.device,
    libraries: tuple[str, ...] = (),
    recipe: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns a result.

    Args:
        bench: the verb that measured it.
        figures: its rows.
        settings: what of the command decides them.
        device: where it was measured.
        libraries: further ones whose versions matter.
        recipe: the resolved recipe, where there is one.
    """
    return {
        "format": FORMAT,
        "bench": bench,
        "figures": [figure.to_json() for figure in figures],
        "hardware": machine(device),
        "settings": settings,
        "versions": versions() | {name: _version(name) for name in libraries},
        "git": git_state(),
        "recipe": recipe or {},
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Returns the processors' names, and the load: a busy machine's figures are no claim."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
    }


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
