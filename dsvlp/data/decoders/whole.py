"""Which JPEGs a GPU may decode: whole baseline ones, judged by their markers.

A GPU's engine may read a cut or overwritten file without a word and leave grey or stale pixels, where
libjpeg warns. What the markers show is caught here, and such a file goes to the strict decoder on the CPU,
as do progressive and CMYK ones, which the writer never stores. Damage inside the entropy-coded bytes that
leaves every marker in its place does not show here; it is what the manifest's hashes are for (`dsvlp data
check`).
"""

from __future__ import annotations

import struct

import numpy as np

from dsvlp.data.jpeg import BadImage, segments

_BASELINE = (0xC0, 0xC1)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END, _RESTART = 0xDA, 0xD9, 0xD0


def is_whole(jpeg: np.ndarray, height: int, width: int) -> bool:
    """Returns whether a JPEG is baseline, grey or YCbCr, of this size, and ends where its only scan ends.

    Args:
        jpeg: uint8 [bytes].
        height, width: pixels that the data set promises.
    """
    try:
        before, scan = segments(jpeg.tobytes())
    except BadImage:
        return False
    frames = [(marker, body) for marker, body in before if marker in _FRAMES]
    rgb_coded = any(
        marker == 0xEE and body[:5] == b"Adobe" and body[11:12] != b"\1" for marker, body in before
    )
    if len(frames) != 1 or frames[0][0] not in _BASELINE or len(frames[0][1]) < 6:
        return False
    bits, *size, components = struct.unpack(">BHHB", frames[0][1][:6])
    plain = bits == 8 and (components == 1 or (components == 3 and not rgb_coded))
    return plain and size == [height, width] and _ends_with_its_scan(jpeg[scan:])


def _ends_with_its_scan(rest: np.ndarray) -> bool:
    """Returns whether there is one scan, restarts in their order, and the end of the image."""
    after = rest[1:][rest[:-1] == 0xFF]  # what follows each 0xFF; 0 says that it was a coded byte
    markers = after[(after != 0) & (after != 0xFF)]
    restarts = markers[(markers & 0xF8) == _RESTART] & 7
    others = markers[(markers & 0xF8) != _RESTART]
    in_order = bool((restarts == np.arange(len(restarts)) % 8).all())
    return others.tolist() == [_SCAN, _END] and in_order
