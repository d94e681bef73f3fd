"""How a row of regions lies in an FFCV file: two values of fixed size, side by side.

`features` is float16 or int8 [N, F]; `objects` is `OBJECT` [N]. A row is read by two slices of the mapped
file; with 100 objects of 2048 float16 it has 412,800 bytes.

Legend: N objects, F feature width.
"""

from __future__ import annotations

import numpy as np

from dsvlp.data.beton import Field
from dsvlp.data.fields import RaggedField

# 32 bytes, so that the row behind it stays aligned.
OBJECT = np.dtype(
    [
        ("box", "<f4", (4,)),  # left, top, right, bottom as shares of the image
        ("label", "<i4"),  # contiguous class, -1 where there is none
        ("confidence", "<f4"),
        ("scale", "<f4"),  # what an int8 feature is multiplied by, a float16 value
        ("is_object", "<u4"),  # 0 where the image has fewer objects
    ]
)

ROW: dict[str, type[Field]] = {"features": RaggedField, "objects": RaggedField}

STORED: dict[str, np.dtype] = {"float16": np.dtype("<f2"), "int8": np.dtype("i1")}


def row_bytes(objects: int, width: int, dtype: str) -> tuple[int, int]:
    """Returns the bytes of a row's features and of its objects."""
    return objects * width * STORED[dtype].itemsize, objects * OBJECT.itemsize
