"""Reads region features from a folder with files for each image, named by its id.

Either ID.npz or ID.safetensors with the arrays below by name, or a folder for each array with ID.npy in it:

    features      float [K, F]
    boxes         float [K, 4], left, top, right, bottom in pixels
    labels        int [K], lines of classes.txt from 0; may be absent
    confidences   float [K]; 1 where absent

`classes.txt`, a class a line, stands beside them where there are labels. Files are opened one at a time.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from dsvlp.data.features.matching import read_classes, source_of
from dsvlp.data.features.rows import NO_CLASS, RegionRows, RegionSource
from dsvlp.data.readers.base import existing
from dsvlp.errors import DataError

if TYPE_CHECKING:
    from dsvlp.data.dataset import Dataset

NAMES = ("features", "boxes", "labels", "confidences")
CLASSES = "classes.txt"
AGAIN = "Make its features again"


def read_folder(path: Path, dataset: Dataset, classes: Path | None = None) -> RegionSource:
    """Returns the source of a folder of files.

    Args:
        path: the folder.
        dataset: whose images are looked up in it.
        classes: the file of class names; None: `classes.txt` in the folder, if it is there.

    Raises:
        DataError: there is no such folder, or it has none of the images.
    """
    path = existing(path, "region features", folder=True)
    files = _files(path)
    if not files:
        raise DataError(
            f"{path} has no features",
            "ID.npz or ID.safetensors for each image, or features/ID.npy",
            "Check the path",
        )
    beside = path / CLASSES
    names = classes or (beside if beside.is_file() else None)
    table = read_classes(names, names.stem if classes else path.name) if names is not None else None

    def read(_: int, file: Path) -> RegionRows:
        return _regions(file, path, table is not None)

    arguments = {"folder": str(path), "files": len(files), "state": _state(path, files.values())}
    return source_of("folder", path.name, dataset, files, read, table, arguments)


def _state(path: Path, files: Iterable[Path]) -> str:
    """Returns a digest of all files' names, sizes and times: another one of the same name is another file."""
    digest = hashlib.sha256()
    for first in files:
        for file in _arrays_of(first, path).values():
            status = file.stat()
            told = f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}\n"
            digest.update(told.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files(path: Path) -> dict[str, Path]:
    """Returns image id -> its file, or its file of features where arrays have folders of their own."""
    features = path / "features"
    if features.is_dir():
        return {_id(file, features): file for file in sorted(features.rglob("*.npy"))}
    kinds = (*path.rglob("*.npz"), *path.rglob("*.safetensors"))
    files: dict[str, Path] = {}
    for file in sorted(kinds):
        if (other := files.setdefault(_id(file, path), file)) != file:
            raise DataError(
                f"{path} has {other.name} and {file.name}", "one file an image", "Remove one of them"
            )
    return files


def _id(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


def _arrays_of(file: Path, folder: Path) -> dict[str, Path]:
    """Returns an image's files: array name -> file, or "" -> the one that holds all."""
    if file.suffix != ".npy":
        return {"": file}
    own = file.relative_to(folder / "features")
    paths = {name: folder / name / own for name in NAMES}
    return {name: path for name, path in paths.items() if path.is_file()}


def _regions(file: Path, folder: Path, has_classes: bool) -> RegionRows:
    arrays = _arrays(file, folder)
    if not {"features", "boxes"} <= arrays.keys():
        raise DataError(
            f"{file} holds {sorted(arrays) or 'nothing'}", f"features and boxes, of {', '.join(NAMES)}", AGAIN
        )
    if "labels" in arrays and not has_classes:
        raise DataError(
            f"{file} has labels, but there is no {CLASSES} in {folder}",
            "the names of their classes, one a line",
            "Put it there",
        )
    features, boxes = arrays["features"], arrays["boxes"]
    if features.ndim != 2 or features.dtype.kind != "f":
        raise DataError(
            f"{file}: features are {features.dtype} {features.shape}", "numbers with a point, [K, F]", AGAIN
        )
    if boxes.shape != (len(features), 4):
        raise DataError(f"{file}: boxes have the shape {boxes.shape}", f"({len(features)}, 4)", AGAIN)
    labels = arrays.get("labels", np.full(len(features), NO_CLASS))
    confidences = arrays.get("confidences", np.ones(len(features)))
    for name, array, kinds in (("labels", labels, "iu"), ("confidences", confidences, "f")):
        if array.shape != (len(features),) or array.dtype.kind not in kinds:
            raise DataError(f"{file}: {name} are {array.dtype} {array.shape}", f"({len(features)},)", AGAIN)
    return RegionRows(
        np.array([len(features)]),
        features,
        boxes.astype(np.float32),
        labels.astype(np.int64),
        confidences.astype(np.float32),
    )


def _arrays(file: Path, folder: Path) -> dict[str, np.ndarray]:
    """Returns an image's arrays by name.

    Raises:
        DataError: a file cannot be read.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        paths = _arrays_of(file, folder)
        return {name: np.load(path, mmap_mode="r", allow_pickle=False) for name, path in paths.items()}
    except (OSError, ValueError, EOFError, KeyError, SafetensorError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read: {error}", fix=AGAIN) from error
