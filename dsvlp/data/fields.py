"""FFCV fields of a stored row, with decoders that hand out pointers instead of bytes.

A row is one image: its JPEG bytes as they are, boxes, box labels, a map. FFCV's own fields do not
serve: `RGBImageField` re-encodes, `BytesField` loses lengths. The decoders here copy nothing: they
yield (offset, size, ...) into the shard's file, and the loader slices its own memory map of it.

Legend: B batch, K boxes of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dsvlp.data.beton import ARG_TYPE, AllocationQuery, Compiler, Field, Operation, State

POINTER = np.dtype("<i8")


@dataclass(frozen=True)
class StoredImage:
    """The value of an image field: JPEG bytes, height and width in pixels."""

    jpeg: bytes
    height: int
    width: int


class ImagePointer(Operation):
    """Decodes an image field to int64 [B, 4]: offset, size, height, width. Nothing is copied."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        """FFCV's hook: what the compiled code yields and where it is put."""
        state = replace(previous_state, jit_mode=True, shape=(4,), dtype=POINTER)
        return state, AllocationQuery((4,), POINTER)

    def generate_code(self) -> Callable:
        """FFCV's hook: the function that gets compiled."""
        iterate = Compiler.get_iterator()

        def decode(rows: Any, out: Any, metadata: Any, storage: Any) -> Any:
            for k in iterate(len(rows)):
                entry = metadata[rows[k]]
                out[k, 0] = entry["ptr"]
                out[k, 1] = entry["size"]
                out[k, 2] = entry["height"]
                out[k, 3] = entry["width"]
            return out[: len(rows)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


class RaggedPointer(Operation):
    """Decodes a ragged field to int64 [B, 2]: offset, size in bytes (0, 0 where there is nothing)."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        """FFCV's hook: what the compiled code yields and where it is put."""
        state = replace(previous_state, jit_mode=True, shape=(2,), dtype=POINTER)
        return state, AllocationQuery((2,), POINTER)

    def generate_code(self) -> Callable:
        """FFCV's hook: the function that gets compiled."""
        iterate = Compiler.get_iterator()

        def decode(rows: Any, out: Any, metadata: Any, storage: Any) -> Any:
            for k in iterate(len(rows)):
                entry = metadata[rows[k]]
                out[k, 0] = entry["ptr"]
                out[k, 1] = entry["size"]
            return out[: len(rows)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


class _PlainField(Field):
    """A field without arguments in the file's header."""

    def to_binary(self) -> np.ndarray:
        return np.zeros(1, dtype=ARG_TYPE)[0]

    @classmethod
    def from_binary(cls, binary: np.ndarray) -> "_PlainField":
        return cls()


class RawJPEGField(_PlainField):
    """Stores a JPEG's bytes verbatim, with its size in pixels."""

    @property
    def metadata_type(self) -> np.dtype:
        """What stands in the row's metadata."""
        return np.dtype([("ptr", "<u8"), ("size", "<u8"), ("height", "<u4"), ("width", "<u4")])

    def encode(self, destination: np.ndarray, value: StoredImage, malloc: Callable) -> None:
        """Writes a `StoredImage` into the page that `malloc` gives."""
        destination["ptr"], region = malloc(len(value.jpeg))
        region[:] = np.frombuffer(value.jpeg, np.uint8)
        destination["size"] = len(value.jpeg)
        destination["height"], destination["width"] = value.height, value.width

    def get_decoder_class(self) -> type[Operation]:
        """FFCV's hook: the decoder where a pipeline names none."""
        return ImagePointer


class RaggedField(_PlainField):
    """Stores an array or bytes of any length; the reader knows type and trailing shape (`ROW`)."""

    @property
    def metadata_type(self) -> np.dtype:
        """What stands in the row's metadata."""
        return np.dtype([("ptr", "<u8"), ("size", "<u8")])

    def encode(self, destination: np.ndarray, value: bytes | np.ndarray, malloc: Callable) -> None:
        """Writes bytes; an empty value takes no memory (FFCV's allocator cannot give 0 bytes)."""
        data = value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes()
        destination["ptr"] = destination["size"] = 0
        if data:
            destination["ptr"], region = malloc(len(data))
            region[:] = np.frombuffer(data, np.uint8)
            destination["size"] = len(data)

    def get_decoder_class(self) -> type[Operation]:
        """FFCV's hook: the decoder where a pipeline names none."""
        return RaggedPointer


# A row's fields in order; names are at most 16 bytes, FFCV cuts longer ones.
ROW: dict[str, type[Field]] = {
    "image": RawJPEGField,
    "boxes": RaggedField,  # float32 [K, 4], xyxy in pixels of the stored image
    "box_labels": RaggedField,  # int32 [K], stored ids of the boxes' label table
    "map": RaggedField,  # a PNG of stored ids of the maps' label table
}
