"""Lets torchvision be imported beside a torch without its extension's backend. Import this before timm.

torchvision's wheels come with a compiled extension for one build of torch; beside a CPU-only
build it cannot load, and `import torchvision` then fails with `operator torchvision::nms does not
exist`, and with it timm and transformers' model classes. Their Python parts need only that the two
operators are declared. So where, and only where, the extension cannot load, this module declares
them; calling one is still an error. Floor 0.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch


def _extension_loads() -> bool:
    """Returns whether torchvision's compiled operators can be used, or torchvision is not there at all."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    libraries = [p for p in Path(spec.origin).parent.glob("_C.*") if p.suffix in (".so", ".pyd")]
    try:
        for library in libraries:
            torch.ops.load_library(library)
    except OSError:
        return False
    return bool(libraries)


def _declare() -> torch.library.Library:
    """Returns the library that declares torchvision's operators; they live as long as it does."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


DECLARED: torch.library.Library | None = None if _extension_loads() else _declare()
