"""dsvlp: end-to-end vision-language pre-training with DeepSpeed and FFCV."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Loads `dsvlp.load` on first use: `import dsvlp` alone must not import torch."""
    if name == "load":
        from dsvlp.predict import load

        return load
    raise AttributeError(f"module 'dsvlp' has no attribute {name!r}")
