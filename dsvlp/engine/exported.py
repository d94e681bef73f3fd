"""The folder that `dsvlp export` and `dsvlp import` write, and whether a training can start from it.

DIR/                     written as `.DIR.partial` and renamed when complete
  export.json            format, recipe, facts of the data, step, the tokenizer's fingerprint, SHA-256
  model.safetensors      every parameter (fp32 master) and persistent buffer by name; a tied one once
  tokenizer/             a Hugging Face tokenizer folder

Torch-free: a recipe's `start` that does not fit is refused before any process begins.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from dsvlp import config
from dsvlp.errors import CheckpointError, RecipeError
from dsvlp.recipe import Recipe, from_json
from dsvlp.types import DataFacts

FORMAT = 1
WEIGHTS, MANIFEST, TOKENIZER = "model.safetensors", "export.json", "tokenizer"

FREE = (
    "model.cross_start",
    "model.fusion.dropout",
    "model.image.batch_norm",
    "model.image.drop_path",
    "model.image.segmentation",
    "model.image.weights",
    "model.image.window",
    "model.image_size",
    "model.inference",
    "model.longest_side",
    "model.mode_schedule",
    "model.pixels",
    "model.pretrained",
    "model.resize",
    "model.text.dropout",
    "model.text.max_length",
    "model.text.weights",
)
"""Keys of the model that no weight depends on, but for tables over the image, which are resized."""


@dataclass(frozen=True)
class Exported:
    """What `export.json` says.

    Attributes:
        folder: where it stands.
        recipe: of the run, or of the import.
        facts: what the system knew of its data.
        step: the checkpoint's; 0 for an import.
        tokenizer: the tokenizer's fingerprint.
        sha256: of the file of weights.
    """

    folder: Path
    recipe: Recipe
    facts: DataFacts
    step: int
    tokenizer: str
    sha256: str

    @property
    def weights(self) -> Path:
        """The file of weights."""
        return self.folder / WEIGHTS

    def verify(self) -> None:
        """Raises `CheckpointError` where the file of weights is not the one that was written."""
        try:
            found = digest(self.weights)
        except OSError as error:
            raise damaged(self.folder, error) from error
        if found != self.sha256:
            raise CheckpointError(
                f"{self.weights} is damaged", "the bytes that were exported", "Export it again"
            )


def is_export(folder: Path) -> bool:
    """Returns whether a folder is an export."""
    return (folder / MANIFEST).is_file()


def describe(folder: Path) -> Exported:
    """Returns what an export says of itself; its weights are not read.

    Raises:
        CheckpointError: it is damaged, or of another format.
    """
    path = folder / MANIFEST
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["format"] != FORMAT:
            raise CheckpointError(
                f"{folder} has the format {told['format']}",
                f"format {FORMAT}",
                "Use the dsvlp that wrote it",
            )
        recipe, facts = from_json(told["recipe"], str(path)), DataFacts.from_json(told["facts"])
        return Exported(folder, recipe, facts, told["step"], told["tokenizer"], told["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, error) from error


def damaged(folder: Path, error: Exception) -> CheckpointError:
    """Returns the error that says so."""
    return CheckpointError(
        f"the export {folder} is damaged: {type(error).__name__} {error}", fix="Export it again"
    )


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def start_of(recipe: Recipe) -> Exported | None:
    """Returns the export that a recipe's training starts from, None where it names none.

    Raises:
        RecipeError: there is no export, or its system or a size is not the recipe's.
        CheckpointError: it is damaged, or of another format.
    """
    if recipe.start is None:
        return None
    folder = Path(recipe.start)
    if not is_export(folder):
        is_run = (folder / "recipe.json").is_file()
        raise RecipeError(
            f"start = {recipe.start!r} " + ("is a run" if is_run else f"holds no {MANIFEST}"),
            "a folder that `dsvlp export` or `dsvlp import` wrote",
            f"Export it: dsvlp export {folder} --out DIR" if is_run else "Check the path",
        )
    exported = describe(folder)
    if not exported.weights.is_file():
        raise damaged(folder, FileNotFoundError(str(exported.weights)))
    _check_sizes(exported, recipe)
    return exported


def _check_sizes(exported: Exported, recipe: Recipe) -> None:
    """Raises `RecipeError` where the two models are not of one system and one size."""
    there, here = config.dump(exported.recipe)["model"], config.dump(recipe)["model"]
    if there["system"] != here["system"]:
        raise RecipeError(
            f"start = {recipe.start!r} holds the system {there['system']!r}",
            f"the recipe's model.system, {here['system']!r}",
            "Choose another start, or a recipe of its system",
        )
    lines = config.differences(there, here, "model.")
    binding = [line for line in lines if line.partition(":")[0] not in FREE]
    if binding:
        raise RecipeError(
            f"start = {recipe.start!r} has other sizes than the recipe (there -> here): {'; '.join(binding)}",
            "the start's own; only the image's size and what has no weights may differ",
            f"Set them as in the recipe of {exported.folder / MANIFEST}",
        )
