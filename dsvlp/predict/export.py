"""Exports: a trained system's weights for others, without optimizer state, DeepSpeed and pickle.

`dsvlp.engine.exported` says what stands in the folder.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from dsvlp import __version__, config
from dsvlp import system as systems
from dsvlp.data.text import Tokenizer
from dsvlp.engine.exported import FORMAT, MANIFEST, TOKENIZER, WEIGHTS, damaged, describe, digest
from dsvlp.engine.inference import Trained, load_weights, named_tensors
from dsvlp.engine.start import read_weights
from dsvlp.errors import CheckpointError, RunError
from dsvlp.system import System


def write(trained: Trained, tokenizer: Tokenizer, folder: Path) -> int:
    """Writes an export and returns how many numbers it holds.

    Raises:
        RunError: the folder exists, or the disk refuses.
    """
    if folder.exists():
        raise RunError(f"{folder} exists already", "a new folder", "Choose another --out, or delete it")
    partial = folder.with_name(f".{folder.name}.partial")
    weights = stored(trained.system)
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
    exported = describe(folder)
    weights = read_weights(exported)
    try:
        tokenizer = Tokenizer.load(folder / TOKENIZER)
    except (OSError, ValueError) as error:
        raise damaged(folder, error) from error
    if tokenizer.fingerprint != exported.tokenizer:
        raise CheckpointError(
            f"{folder / TOKENIZER} is not the tokenizer that was exported",
            f"the fingerprint {exported.tokenizer}",
            "Export the run again",
        )
    # The towers' published weights are not fetched: trained ones come next.
    recipe, facts = exported.recipe, exported.facts
    bare = recipe.model.model_copy(update={"pretrained": False})
    system = systems.build(recipe.model_copy(update={"model": bare}), facts)
    load_weights(system, weights, str(folder))
    return Trained(recipe, facts, system, exported.step, folder), tokenizer


def stored(system: System) -> dict[str, Tensor]:
    """Returns what an export holds of a system, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named_tensors(system).items()}


def _manifest(trained: Trained, tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "dsvlp": __version__,
        "step": trained.step,
        "recipe": config.dump(trained.recipe),
        "facts": trained.facts.to_json(),
        "tokenizer": tokenizer.fingerprint,
        "sha256": digest(folder / WEIGHTS),
    }
