"""Small JSON files: replaced as a whole, read with a sentence. Torch-free."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dsvlp.errors import RunError


def write_json(path: Path, value: Any) -> None:
    """Replaces a small JSON file as a whole.

    Raises:
        RunError: the disk refuses.
    """
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}", fix="Check space and rights") from error


def read_json(path: Path, made_by: str) -> dict[str, Any]:
    """Returns a JSON object.

    Args:
        path: the file.
        made_by: what makes such a file, for the sentence: "`dsvlp train --run`".

    Raises:
        RunError: there is no such file, or it is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist", f"a folder that {made_by} made", "Check the path") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"{path} is damaged: {error}", "JSON", "Restore it or choose another folder"
        ) from error
    if not isinstance(value, dict):
        raise RunError(f"{path} holds a {type(value).__name__}", "a JSON object", "Choose another folder")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a file of JSON lines; a torn last line, as a kill leaves it, is no record.

    Raises:
        RunError: another line is damaged.
    """
    if not path.exists():
        return []
    try:
        *whole, _torn = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in whole]
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{path} is damaged: {error}", "one JSON record a line", "Delete the bad line"
        ) from error
