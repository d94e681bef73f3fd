"""NLVR (Suhr et al. 2017), version 1: sentences that people wrote over drawn scenes.

Each line of the json is one sentence with six pictures, the permutations of its three boxes. For
pre-training, the true sentences are captions of their pictures; the false ones are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from dsvlp.data.manifest import Tally
from dsvlp.data.readers.base import Reader, existing, get, inside, parse_json
from dsvlp.data.readers.zipped import members
from dsvlp.errors import DataError
from dsvlp.types import ImageSource, Sample

PERMUTATIONS = 6

Find = Callable[[str, str], ImageSource]


def read(file: Path | str, images: Path | str, permutations: int = PERMUTATIONS) -> Reader:
    """Returns the reader of one split.

    Args:
        file: `train.json`, `dev.json` or `test.json`; its name is the split's.
        images: the published zip, or the folder that it unpacks to (that which holds `train/`).
        permutations: pictures of each sentence, 1 to 6.

    Raises:
        DataError: a file is absent or not of this format; names file, line and key.
    """
    path, pictures = existing(file, "sentences"), Path(images)
    if not 1 <= permutations <= PERMUTATIONS:
        raise DataError(f"--permutations {permutations}", f"1 to {PERMUTATIONS}", "Give another number")
    if pictures.is_file():
        find = _in_zip(pictures)
    else:
        find = _in_folder(existing(images, "images, or a zip", folder=True))
    skipped = Tally()
    return Reader(
        name="nlvr",
        source=str(file),
        samples=lambda: _samples(path, find, permutations, skipped),
        arguments={"images": str(images), "permutations": permutations},
        skipped=skipped,
    )


def _samples(path: Path, find: Find, permutations: int, skipped: Tally) -> Iterator[Sample]:
    split = path.stem
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}: line {number}"
            if not line.strip():
                continue
            record = parse_json(line, where)
            sentence = get(record, "sentence", str, where)
            identifier, directory = (
                get(record, "identifier", str, where),
                get(record, "directory", str, where),
            )
            if not _truth(record, where):
                skipped.add("false sentence", where)
                continue
            for k in range(permutations):
                name = f"{split}/images/{directory}/{split}-{identifier}-{k}.png"
                yield Sample("caption", (find(name, where),), sentence, where=where)


def _truth(record: object, where: str) -> bool:
    label = get(record, "label", (str, bool), where)
    if label not in ("true", "false", True, False):
        raise DataError(
            f"{where}: label = {label!r}", '"true" or "false"', "Correct it there, or leave it out"
        )
    return label in ("true", True)


def _in_folder(folder: Path) -> Find:
    return lambda name, where: ImageSource(Path(name).name, inside(folder, name, where))


def _in_zip(path: Path) -> Find:
    places = members(path)

    def find(name: str, where: str) -> ImageSource:
        # A member that is not there gets a path that is not there: the writer counts it as absent.
        if name not in places:
            return ImageSource(Path(name).name, path / name)
        return ImageSource(Path(name).name, path, *places[name])

    return find
