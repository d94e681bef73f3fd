"""Raw files for the storage tests: small pictures, a reader over them, the folder of real data."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsvlp.data.readers.base import Reader, Tables
from dsvlp.types import ImageSource, LabelTable, Sample

BOXES = LabelTable("things", (3, 7), ("cat", "dog"))
MAPS = LabelTable("regions", (1, 5), ("sky", "grass"), 0)


def real(*parts: str) -> Path:
    """Returns a path of the real data, or skips the test where there is none."""
    root = Path(os.environ.get("DSVLP_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no real data: {path} is absent (DSVLP_DATA)")
    return path


def pixels(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    """Returns a smooth coloured picture, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: Image.Image | np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    """Returns a picture as a file's bytes."""
    out = io.BytesIO()
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(out, kind, **options)
    return out.getvalue()


def make_pictures(folder: Path, count: int) -> list[Path]:
    """Writes `count` baseline JPEGs of different sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(encoded(pixels(number, 24 + number % 5, 32 + number % 7)))
    return paths


def source(path: Path, number: int) -> ImageSource:
    """Returns an image; each second one has boxes, each third one a map."""
    height, width = 24 + number % 5, 32 + number % 7
    boxed = number % 2 == 0
    ids = np.random.default_rng(number).choice([0, 1, 5], (height, width)).astype(np.uint8)
    return ImageSource(
        path.name,
        path,
        boxes_xyxy=np.array([[1, 2, 10, 12], [0, 0, 32, 24]], np.float32) if boxed else None,
        box_labels=np.array([3, 7], np.int32) if boxed else None,
        map_png=encoded(ids, "PNG") if number % 3 == 0 else None,
    )


def reader(paths: list[Path], captions: int = 2) -> Reader:
    """Returns a reader of pictures with `captions` captions each, boxes and maps."""

    def samples() -> Iterator[Sample]:
        for number, path in enumerate(paths):
            image = source(path, number)
            for k in range(captions):
                yield Sample("caption", (image,), f"caption {k} of picture {number}", where=f"line {number}")

    return Reader("test", "pictures", samples, Tables(MAPS, BOXES), images=len(paths))


def files_of(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
