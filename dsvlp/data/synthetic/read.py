"""Reads a synthetic world that `write_world` wrote, as samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsvlp.data.answers import table_of
from dsvlp.data.readers.base import Reader, Tables, existing, get, inside, load_json, parse_json
from dsvlp.data.synthetic.write import FORMAT
from dsvlp.errors import DataError
from dsvlp.types import ImageSource, LabelTable, Sample

Line = tuple[str, dict[str, Any]]  # place, record
TASKS = ("caption", "question", "statement")


def read_world(folder: Path, tasks: tuple[str, ...] = ("caption",)) -> Reader:
    """Returns the reader of a synthetic world.

    Args:
        folder: what `dsvlp data synth` or `write_world` made.
        tasks: the kinds of samples to read, of "caption", "question", "statement".

    Raises:
        DataError: the folder is no synthetic world of this version, or a task is unknown.
    """
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown or not tasks:
        raise DataError(f"synthetic world: tasks {unknown or 'none'}", f"some of {', '.join(TASKS)}")
    about = load_json(existing(folder / "world.json", "a synthetic world"))
    if about.get("format") != FORMAT:
        raise DataError(
            f"{folder}/world.json has format {about.get('format')!r}",
            f"format {FORMAT}",
            "Make the world again with `dsvlp data synth`",
        )
    return Reader(
        name="synthetic",
        source=str(folder),
        samples=lambda: _Walk(folder, tasks).samples(),
        tables=Tables(
            LabelTable.from_json(about["segmentation"]),
            LabelTable.from_json(about["boxes"]),
            table_of(about["answers"]),
        ),
        arguments={"tasks": list(tasks)},
        images=get(about, "images", int, f"{folder}/world.json"),
    )


@dataclass(frozen=True)
class _Walk:
    """One pass over a world's files."""

    folder: Path
    tasks: tuple[str, ...]

    def samples(self) -> Iterator[Sample]:
        """Yields each image's captions and questions, and a statement after each second image."""
        statements = _lines(self.folder / "statements.jsonl")
        left: ImageSource | None = None
        for where, record in _lines(self.folder / "annotations.jsonl"):
            image = self._image(record, where)
            yield from self._texts(record, image, where)
            if left is None:
                left = image
                continue
            if "statement" in self.tasks:
                yield _statement(left, image, statements)
            left = None

    def _texts(self, record: dict[str, Any], image: ImageSource, where: str) -> Iterator[Sample]:
        if "caption" in self.tasks:
            for caption in get(record, "captions", list, where):
                yield Sample("caption", (image,), get(caption, "text", str, where), where=where)
        if "question" in self.tasks:
            for question in get(record, "questions", list, where):
                answers = ((get(question, "answer", str, where), 1.0),)
                yield Sample("question", (image,), get(question, "text", str, where), answers, where=where)

    def _image(self, record: dict[str, Any], where: str) -> ImageSource:
        name = get(record, "image", str, where)
        shapes = get(record, "shapes", list, where)
        return ImageSource(
            id=name,
            path=inside(self.folder / "images", name, where),
            boxes_xyxy=np.array([get(s, "box", list, where) for s in shapes], np.float32).reshape(-1, 4),
            box_labels=np.array([get(s, "label", int, where) for s in shapes], np.int32),
            box_phrases=_phrases(record, len(shapes), where) if "caption" in self.tasks else None,
            map_path=inside(self.folder / "maps", Path(name).with_suffix(".png").name, where),
        )


def _statement(left: ImageSource, right: ImageSource, statements: Iterator[Line]) -> Sample:
    where, record = next(statements, ("statements.jsonl", {}))
    named = (record.get("left"), record.get("right"))
    if named != (left.id, right.id):
        raise DataError(
            f"{where}: the statement of {left.id} and {right.id} names {named[0]} and {named[1]}",
            "the two images in turn",
            "Make the world again with `dsvlp data synth`",
        )
    label = int(get(record, "true", bool, where))
    return Sample("statement", (left, right), get(record, "text", str, where), label=label, where=where)


def _phrases(record: dict[str, Any], shapes: int, where: str) -> np.ndarray:
    """Returns int32 [K, 3]: (caption, start, end) of the first phrase that names each shape, or -1s."""
    found = np.full((shapes, 3), -1, np.int32)
    for ordinal, caption in enumerate(get(record, "captions", list, where)):
        for shape, start, end in get(caption, "phrases", list, where):
            if found[shape, 0] < 0:
                found[shape] = ordinal, start, end
    return found


def _lines(path: Path) -> Iterator[Line]:
    """Yields (place, record) of a JSON-lines file."""
    with existing(path, "a synthetic world").open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}: line {number}"
            record = parse_json(line, where)
            if not isinstance(record, dict):
                raise DataError(f"{where} is a {type(record).__name__}", "a JSON object")
            yield where, record
