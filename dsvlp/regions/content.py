"""What a model given as a local file or folder holds: a name alone does not bind a restart to it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dsvlp.errors import DataError

_READ = (".safetensors", ".json")  # of a folder of `save_pretrained`


def content_of(name: str | None) -> str | None:
    """Returns the SHA-256 of a file, or of a folder's weights and configuration; None of a hub's name.

    Raises:
        DataError: a file cannot be read.
    """
    if name is None:
        return None
    path, sha = Path(name), hashlib.sha256()
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _READ and file.is_file())
    else:
        return None
    for file in files:
        sha.update(f"{file.name}\0".encode() if path.is_dir() else b"")
        try:
            with file.open("rb") as data:
                sha.update(hashlib.file_digest(data, "sha256").digest())
        except OSError as error:
            raise DataError(
                f"{file} cannot be read: {error}", "a model's file", "Check its rights"
            ) from error
    return sha.hexdigest()
