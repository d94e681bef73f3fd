"""WebDataset: tar files whose successive members share a key, one of them a picture, one its caption.

The picture is read in place by the workers, so the tar must not be compressed; nothing is unpacked.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from dsvlp.data.manifest import Tally
from dsvlp.data.readers.base import IMAGE_SUFFIXES, Reader, decode, existing, get, parse_json
from dsvlp.errors import DataError
from dsvlp.types import ImageSource, Sample

CAPTIONS = (".txt", ".caption", ".text")


def read(files: Sequence[Path | str]) -> Reader:
    """Returns the reader of tar files in the order given.

    A caption is the text member of its key, or `caption` in its json member.

    Raises:
        DataError: a file is absent, compressed or cut, or a member's name leaves the archive.
    """
    paths = [existing(file, "pictures and captions") for file in files]
    if len({path.name for path in paths}) != len(paths):
        raise DataError(
            "two tar files have one name", "different names: images are known by them", "Rename one"
        )
    skipped = Tally()
    return Reader(
        name="webdataset",
        source=", ".join(str(file) for file in files),
        samples=lambda: (sample for path in paths for sample in _samples(path, skipped)),
        skipped=skipped,
    )


def _samples(path: Path, skipped: Tally) -> Iterator[Sample]:
    with path.open("rb") as file:
        for key, group in _groups(path):
            where = f"{path}: {key}"
            pictures = [m for suffix, m in group.items() if suffix in IMAGE_SUFFIXES]
            caption = _caption(file, group, where)
            if not pictures or caption is None:
                skipped.add("key without a picture or caption", where)
                continue
            picture = pictures[0]
            image = ImageSource(f"{path.name}/{key}", path, picture.offset_data, picture.size)
            yield Sample("caption", (image,), caption, where=where)


def _caption(file: BinaryIO, group: dict[str, tarfile.TarInfo], where: str) -> str | None:
    for suffix in (*CAPTIONS, ".json"):
        if suffix not in group:
            continue
        member = group[suffix]
        file.seek(member.offset_data)
        data = file.read(member.size)
        if suffix == ".json":
            return get(parse_json(data, f"{where}.json"), "caption", str, f"{where}.json")
        return decode(data).strip()
    return None


def _groups(path: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Yields each key with its members by suffix; cut at the first point of its last part."""
    key, group = "", dict[str, tarfile.TarInfo]()
    for member in _members(path):
        name = PurePosixPath(member.name)
        stem, _, suffix = name.name.partition(".")
        new = str(name.with_name(stem)) if stem else str(name)
        if new != key and group:
            yield key, group
            group = {}
        key = new
        group["." + suffix.lower()] = member
    if group:
        yield key, group


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts or not member.isreg():
                    raise DataError(
                        f"{path}: the member {member.name!r} is a link or leaves the archive",
                        "plain files inside it",
                        "Make the archive again without it",
                    )
                if member.offset_data + member.size > size:
                    raise DataError(
                        f"{path} ends inside {member.name!r}", "a whole tar file", "Download it again"
                    )
                yield member
            end = archive.offset  # of the header after the last member that could be read
        with path.open("rb") as file:
            file.seek(end)
            mark = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        raise DataError(
            f"{path} is not a plain tar file: {error}",
            "a tar without compression",
            "Uncompress or download it again",
        ) from error
    if mark != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged or cut header for the end
        raise DataError(
            f"{path} is cut or damaged at byte {end}: no header and no end mark stands there",
            "a whole tar file",
            "Download it again",
        )
