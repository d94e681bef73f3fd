"""Where the members of a zip archive lie, so that workers read them in place."""

from __future__ import annotations

import struct
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from dsvlp.errors import DataError

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., lengths of the name and of the extra field


def members(path: Path) -> dict[str, tuple[int, int]]:
    """Returns name -> (first byte, size) of the files in a zip whose members are stored, not compressed.

    Raises:
        DataError: no zip, damaged, or its members are compressed or encrypted.
    """
    found = {}
    try:
        with ZipFile(path) as archive, path.open("rb") as file:
            for info in archive.infolist():
                if info.is_dir():
                    continue
                if info.compress_type != ZIP_STORED or info.flag_bits & 1:
                    raise DataError(
                        f"{path}: {info.filename} is compressed or encrypted",
                        "members that can be read in place",
                        "Unpack the archive and give its folder",
                    )
                file.seek(info.header_offset)
                signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                if signature != b"PK\3\4":
                    raise BadZipFile(f"no local header of {info.filename}")
                found[info.filename] = (
                    info.header_offset + _LOCAL_HEADER.size + name + extra,
                    info.file_size,
                )
    except (BadZipFile, struct.error, ValueError, NotImplementedError, OSError) as error:
        raise DataError(f"{path} is not a whole zip archive: {error}", fix="Download it again") from error
    return found
