"""Exports: a trained system's weights for others, without optimizer state, DeepSpeed and pickle.

DIR/                     written as `.DIR.partial` and renamed when complete
  export.json            format, recipe, facts of the data, step, the tokenizer's fingerprint, SHA-256
  model.safetensors      every parameter (fp32 master) and persistent buffer by name; a tied one once
  tokenizer/             a Hugging Face tokenizer folder
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsvlp import __version__, config
from dsvlp import system as systems
from dsvlp.data.text import Tokenizer
from dsvlp.engine.inference import Trained, load_weights
from dsvlp.errors import CheckpointError, RunError
from dsvlp.recipe import from_json
from dsvlp.system import System
from dsvlp.types import DataFacts

FORMAT = 1
WEIGHTS, MANIFEST, TOKENIZER = "model.safetensors", "export.json", "tokenizer"


def is_export(folder: Path) -> bool:
    """Returns whether a folder is an export."""
    return (folder / MANIFEST).is_file()


def write(trained: Trained, tokenizer: Tokenizer, folder: Path) -> int:
    """Writes an export and returns how many numbers it holds.

    Raises:
        RunError: the folder exists, or the disk refuses.
    """
    if folder.exists():
        raise RunError(f"{folder} exists already", "a new folder", "Choose another --out, or delete it")
    partial = folder.with_name(f".{folder.name}.partial")
    weights = named_tensors(trained.system)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(weights, partial / WEIGHTS)
        tokenizer.save(partial / TOKENIZER)
        text = json.dumps(_manifest(trained, tokenizer, partial), indent=1)
        (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")
        os.replace(partial, folder)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written: {error.strerror}", fix="Check space and rights"
        ) from error
    return sum(tensor.numel() for tensor in weights.values())


def read(folder: Path) -> tuple[Trained, Tokenizer]:
    """Returns what `write` wrote.

    Raises:
        CheckpointError: it is damaged, or of another format.
    """
    try:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        _check(folder, told)
        recipe, facts = from_json(told["recipe"], str(folder / MANIFEST)), DataFacts.from_json(told["facts"])
        weights, tokenizer = load_file(folder / WEIGHTS), Tokenizer.load(folder / TOKENIZER)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"the export {folder} is damaged: {type(error).__name__} {error}", fix="Export it again"
        ) from error
    if tokenizer.fingerprint != told["tokenizer"]:
        raise CheckpointError(f"{folder / TOKENIZER} is not the tokenizer that was exported")
    # The towers' published weights are not fetched: trained ones come next.
    bare = recipe.model.model_copy(update={"pretrained": False})
    system = systems.build(recipe.model_copy(update={"model": bare}), facts)
    load_weights(system, weights, str(folder))
    return Trained(recipe, facts, system, told["step"], folder), tokenizer


def named_tensors(system: System) -> dict[str, Tensor]:
    """Returns every parameter and persistent buffer on the CPU; a tied parameter under its first name."""
    persistent = system.state_dict().keys()
    tensors: dict[str, Tensor] = dict(system.named_parameters())
    tensors |= {name: buffer for name, buffer in system.named_buffers() if name in persistent}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _manifest(trained: Trained, tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "dsvlp": __version__,
        "step": trained.step,
        "recipe": config.dump(trained.recipe),
        "facts": trained.facts.to_json(),
        "tokenizer": tokenizer.fingerprint,
        "sha256": _digest(folder / WEIGHTS),
    }


def _check(folder: Path, told: dict[str, Any]) -> None:
    if told["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} has the format {told['format']}", f"format {FORMAT}", "Use the dsvlp that wrote it"
        )
    if _digest(folder / WEIGHTS) != told["sha256"]:
        raise CheckpointError(
            f"{folder / WEIGHTS} is damaged", "the bytes that were exported", "Export it again"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
