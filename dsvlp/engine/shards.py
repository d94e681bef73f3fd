"""The files of one checkpoint: safetensors shards, a JSON state, and the manifest that vouches for both.

Legend: a *piece* is one contiguous run of one flattened tensor; `name | state | start` is its key.

The shards are written by hand rather than by the safetensors library: its writer hides errno (a full
disk is then a string) and wants a second pass for the hash. They are read by the library. Whatever is
wrong with a file ends in a `CheckpointError` that names it; sizes are checked before memory is spent.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dsvlp.config import Strict
from dsvlp.engine.fragments import Fragment
from dsvlp.errors import CheckpointError

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
_BLOCK = 1 << 22  # bytes hashed or written at a time
_LARGEST_JSON = 1 << 30  # bytes; a manifest takes about 150 bytes a piece

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}

_Count = Annotated[int, Field(ge=0)]
_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*\.(safetensors|json)$")]


class FileEntry(Strict):
    """Size in bytes and SHA-256 (hexadecimal) of one file."""

    bytes: _Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TensorEntry(Strict):
    """One tensor of state: `pieces` are (start, count, file), in order of start, without gap or overlap."""

    name: str
    state: str
    dtype: str
    shape: tuple[_Count, ...]
    pieces: tuple[tuple[_Count, _Count, _FileName], ...]


class Manifest(Strict):
    """What a checkpoint holds. A folder without a valid one does not exist for the reader."""

    format: int
    step: _Count
    world: _Count
    files: dict[_FileName, FileEntry]
    tensors: tuple[TensorEntry, ...]


def key_of(fragment: Fragment) -> str:
    """Returns the name of a fragment inside its shard."""
    return f"{fragment.name}|{fragment.state}|{fragment.start}"


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> FileEntry:
    """Writes and syncs a file and returns its entry; `OSError` where the disk refuses."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in chunks:
            for begin in range(0, len(chunk), _BLOCK):
                block = chunk[begin : begin + _BLOCK]
                file.write(block)
                digest.update(block)
                size += len(block)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(bytes=size, sha256=digest.hexdigest())


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_shard(path: Path, fragments: Sequence[Fragment]) -> FileEntry:
    """Writes this rank's fragments (contiguous, on the CPU) as one safetensors file."""
    header: dict[str, Any] = {}
    end = 0
    for fragment in fragments:
        begin, end = end, end + fragment.tensor.nbytes
        header[key_of(fragment)] = {
            "dtype": _DTYPES[fragment.tensor.dtype],
            "shape": [fragment.tensor.numel()],
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def chunks() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little")
        yield text
        for fragment in fragments:
            if fragment.tensor.numel():
                yield fragment.tensor.view(torch.uint8).numpy().data

    return write_file(path, chunks())


def hash_file(path: Path) -> FileEntry:
    """Returns the entry of a file as it lies on the disk."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return FileEntry(bytes=size, sha256=digest.hexdigest())


def problem_of(path: Path, entry: FileEntry) -> str | None:
    """Returns what is wrong with a file (missing, truncated, changed), None where it is as promised."""
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            return f"{path} has {size} bytes, {entry.bytes} were written"
        if hash_file(path).sha256 != entry.sha256:
            return f"{path} has changed: its SHA-256 is not the manifest's"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return None


def piece_list(fragments: Sequence[Fragment], file: str) -> list[dict[str, Any]]:
    """Returns what rank 0 must know of a rank's fragments to write the manifest."""
    return [
        {
            "name": f.name,
            "state": f.state,
            "dtype": _DTYPES[f.tensor.dtype],
            "shape": list(f.shape),
            "piece": [f.start, f.tensor.numel(), file],
        }
        for f in fragments
    ]


def tensor_entries(pieces: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the manifest's tensors of all ranks' pieces, sorted by name and state."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for piece in pieces:
        entry = {key: piece[key] for key in ("name", "state", "dtype", "shape")}
        merged.setdefault((piece["name"], piece["state"]), {**entry, "pieces": []})["pieces"].append(
            piece["piece"]
        )
    for entry in merged.values():
        entry["pieces"].sort()
    return [merged[key] for key in sorted(merged)]


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest with its own checksum in front."""
    body = json.dumps(manifest)
    checksum = hashlib.sha256(body.encode()).hexdigest()
    write_file(path, [checksum.encode(), b"\n", body.encode()])


def read_manifest(folder: Path) -> Manifest:
    """Returns a checkpoint's manifest after checking everything that can be checked without the shards.

    Raises:
        CheckpointError: absent, changed, of another format, or with pieces that do not make whole tensors.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise CheckpointError(f"{path} is larger than {_LARGEST_JSON} bytes")
        checksum, _, body = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise CheckpointError(f"{path} has changed: its SHA-256 is not the one in its first line")
    try:
        manifest = Manifest.model_validate_json(body)
    except (ValidationError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a checkpoint's manifest: {error}") from error
    if manifest.format != FORMAT:
        raise CheckpointError(
            f"{path} has format {manifest.format}", f"format {FORMAT}", "Use a matching dsvlp"
        )
    _check_pieces(manifest, path)
    return manifest


def _check_pieces(manifest: Manifest, path: Path) -> None:
    promised = dict.fromkeys(manifest.files, 0)
    for entry in manifest.tensors:
        where = f"{path}: {entry.name} ({entry.state})"
        if entry.dtype not in _BY_NAME:
            raise CheckpointError(f"{where} has dtype {entry.dtype!r}", f"one of {', '.join(_BY_NAME)}")
        position = 0
        for start, count, file in entry.pieces:
            if start != position or file not in promised:
                raise CheckpointError(f"{where}: the piece at {start} in {file} does not follow {position}")
            position += count
            promised[file] += count * _BY_NAME[entry.dtype].itemsize
        if position != math.prod(entry.shape):
            raise CheckpointError(f"{where}: {position} elements for shape {entry.shape}")
    for file, size in promised.items():
        if size > manifest.files[file].bytes:
            raise CheckpointError(f"{path}: {file} cannot hold the {size} bytes of its pieces")


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}", "a table")
    return state


class CheckpointReader:
    """Reads any part of any tensor of a verified checkpoint; files are mapped, not loaded.

    Args:
        folder: the checkpoint's folder.
        manifest: its manifest.

    Attributes:
        state: the JSON state that was saved with the tensors.

    Raises:
        CheckpointError: the state is not JSON.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.state = _read_state(folder / STATE)
        self._entries = {(entry.name, entry.state): entry for entry in manifest.tensors}
        self._handles: dict[str, Any] = {}
        self._stack = ExitStack()

    def table(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """Returns (name, state) -> shape of every tensor."""
        return {key: entry.shape for key, entry in self._entries.items()}

    def read(self, name: str, state: str, start: int = 0, count: int | None = None) -> Tensor:
        """Returns `count` elements of a flattened tensor from `start` (by default all), 1-d, on the CPU.

        Raises:
            CheckpointError: a shard that contradicts the manifest.
        """
        entry = self._entries[name, state]
        stop = math.prod(entry.shape) if count is None else start + count
        out = torch.empty(stop - start, dtype=_BY_NAME[entry.dtype])
        for begin, length, file in entry.pieces:
            low, high = max(start, begin), min(stop, begin + length)
            if low < high:
                values = self._piece(file, f"{name}|{state}|{begin}", low - begin, high - begin)
                if values.dtype != out.dtype or values.numel() != high - low:
                    raise CheckpointError(
                        f"{self.folder / file}: {name} ({state}) is not as the manifest says"
                    )
                out[low - start : high - start] = values
        return out

    def whole(self, name: str, state: str) -> Tensor:
        """Returns a whole tensor in its shape."""
        return self.read(name, state).view(self._entries[name, state].shape)

    def _piece(self, file: str, key: str, low: int, high: int) -> Tensor:
        try:
            if file not in self._handles:
                self._handles[file] = self._stack.enter_context(safe_open(self.folder / file, framework="pt"))
            values: Tensor = self._handles[file].get_slice(key)[low:high]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.folder / file} cannot be read: {error}") from error
        return values

    def close(self) -> None:
        """Unmaps the files."""
        self._handles.clear()
        self._stack.close()
