"""Small data sets of noise for the loader's tests: every row different, maps and boxes where asked."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dsvlp import recipe
from dsvlp.data.dataset import Dataset
from dsvlp.data.loader import Loader
from dsvlp.data.readers.base import Reader, Tables
from dsvlp.data.rows import RowReader
from dsvlp.data.text import Tokenizer, train_wordpiece
from dsvlp.data.writer import Options, write
from dsvlp.types import ImageSource, LabelTable, Sample

TABLE = LabelTable("noise", (2, 5, 9), ("two", "five", "nine"), ignore=0)
SIDES = ((40, 56), (64, 32), (48, 48))  # height, width


def jpeg(seed: int, height: int, width: int) -> bytes:
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def make_dataset(
    folder: Path,
    name: str,
    captions: Sequence[int],
    rows_per_shard: int = 1000,
    maps: bool = False,
    seed: int = 0,
    sides: Sequence[tuple[int, int]] = SIDES,
) -> Dataset:
    """Writes image i with `captions[i]` captions "picture i caption j"; maps and boxes for even images."""
    raw = folder / f"{name}-raw"
    raw.mkdir(parents=True)
    sources = []
    for number in range(len(captions)):
        height, width = sides[number % len(sides)]
        path = raw / f"{number:04d}.jpg"
        path.write_bytes(jpeg(seed + number, height, width))
        extra = {}
        if maps and number % 2 == 0:
            draws = np.random.default_rng(seed + number)
            extra = {
                "map_png": png(draws.choice([0, 2, 5, 9], (height, width))),
                "boxes_xyxy": np.array([[4, 6, 20, 30], [0, 0, width, height]], np.float32),
                "box_labels": np.array([5, 9], np.int32),
            }
        sources.append(ImageSource(path.name, path, **extra))
    table = TABLE if maps else None
    samples = [
        Sample("caption", (source,), f"{name} picture {number} caption {j}")
        for number, source in enumerate(sources)
        for j in range(captions[number])
    ]
    reader = Reader("noise", name, lambda: iter(samples), Tables(table, table), {"seed": seed})
    out = folder / f"{name}.beton"
    write(reader, out, Options(processes=1, rows_per_shard=rows_per_shard, progress=False))
    return Dataset.open(out)


def make_tokenizer(datasets: Sequence[Dataset]) -> Tokenizer:
    texts = [text for dataset in datasets for text in dataset.texts(range(dataset.manifest.texts))]
    return train_wordpiece(texts, 200)


def make_recipe(*overrides: str) -> recipe.Recipe:
    """A recipe of 32-pixel images with ITM and MLM, 12 pairs a step in micro-batches of 2."""
    return recipe.load(
        "tiny_svl",
        [
            "objectives.segl=false",
            "model.image_size=32",
            "model.text.vocabulary=256",
            "batch.global_pairs=12",
            "batch.micro_pairs=2",
            "data.workers=1",
            *overrides,
        ],
    )


def make_loader(datasets: Sequence[Dataset], tokenizer: Tokenizer, *overrides: str, **options) -> Loader:
    options = {"rank": 0, "world": 1, "split": "train", **options}
    return Loader(make_recipe(*overrides), datasets, tokenizer, **options)


def damage(dataset: Dataset, row: int, data: bytes) -> None:
    """Overwrites the beginning of a row's JPEG in its shard, below the writer and its hashes."""
    shard, local = (int(value[0]) for value in dataset.locate(np.array([row])))
    reader = RowReader(dataset, frozenset(), 1)
    stored = reader.read(np.array([row]))[0].jpeg.tobytes()
    path = dataset.shards[shard].path
    content = bytearray(path.read_bytes())
    start = content.index(stored)
    content[start : start + len(data)] = data
    path.write_bytes(bytes(content))
    assert local >= 0
