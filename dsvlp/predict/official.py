"""Files of the official FIBER: Lightning's `.ckpt` and plain safetensors. No code in them ever runs.

A `.ckpt` is a zip with a pickle inside. It is read by torch's restricted unpickler (`weights_only`).
Lightning files its callbacks' state under their classes, and hyper-parameters come in containers of the
configuration's library: their names are read as plain dictionaries. Any other name is an error.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from dsvlp.errors import CheckpointError, RunError

INERT = ("pytorch_lightning.", "sacred.")
# What torch's reader and unpickler raise on bytes that nobody wrote so.
DAMAGE = (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError)


def read(path: Path) -> dict[str, Tensor]:
    """Returns the state of a checkpoint under its own names; tensors stay on the disk until they are used.

    Raises:
        CheckpointError: it is absent, no checkpoint, damaged, or holds more than tensors and plain data.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}", "a .ckpt or .safetensors file", "Check the path")
    try:
        state = _read_zip(path) if zipfile.is_zipfile(path) else load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is neither a .ckpt of torch 1.6 or later nor safetensors: {error}",
            "FIBER's coarse checkpoint",
            "Check that the download is whole",
        ) from error
    except pickle.UnpicklingError as error:  # torch's text advises to run the code
        raise CheckpointError(
            f"{path} holds a pickle that is damaged or more than tensors and plain data",
            "FIBER's coarse checkpoint",
            "Check that the download is whole",
        ) from error
    except DAMAGE as error:
        raise CheckpointError(
            f"{path} is damaged: {type(error).__name__} {error}", fix="Fetch it again"
        ) from error
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(
            f"{path} holds {strange[0]!r} among its weights, which is no tensor",
            "a state dict of tensors",
            "Save the model's `state_dict` alone",
        )
    return state


def write(state: dict[str, Tensor], path: Path) -> None:
    """Writes a state as the official loader reads it (`.ckpt`), or as `.safetensors`, by the file's ending.

    Raises:
        RunError: the file exists, has another ending, or the disk refuses.
    """
    if path.suffix not in (".ckpt", ".safetensors"):
        raise RunError(
            f"{path} ends in {path.suffix!r}",
            ".ckpt, as the official code reads, or .safetensors",
            "Choose another --out",
        )
    if path.exists():
        raise RunError(f"{path} exists already", "a new file", "Choose another --out, or delete it")
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ckpt":
            torch.save({"state_dict": state}, partial)
        else:
            save_file(state, partial)
        partial.rename(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch says RuntimeError of a full disk
        partial.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error}", fix="Check space and rights") from error


def _read_zip(path: Path) -> dict[str, Any]:
    strange = get_unsafe_globals_in_checkpoint(path)
    refused = [name for name in strange if not name.startswith(INERT)]
    if refused:
        raise CheckpointError(
            f"{path} holds the code {', '.join(refused)}, which dsvlp does not run",
            "a checkpoint of tensors and plain data",
            "Save its `state_dict` alone where you trust the file",
        )
    with safe_globals([(OrderedDict, name) for name in strange]):
        payload = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(payload, dict) or not isinstance(payload.get("state_dict"), dict):
        found = sorted(map(str, payload))[:8] if isinstance(payload, dict) else type(payload).__name__
        raise CheckpointError(
            f"{path} has no `state_dict`; it holds {found}", "a checkpoint of Lightning", "Check the path"
        )
    return dict(payload["state_dict"])
