"""Gathers a reader's samples: numbers the images as they appear, spools the texts, counts what is refused.

Memory while writing: about 150 bytes an image and 37 bytes a sample; texts go to the disk at once.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dsvlp.data import answers
from dsvlp.data.answers import AnswerRule
from dsvlp.data.manifest import Tally
from dsvlp.data.tables import SAMPLE, TASKS, Strings, write_samples, write_strings
from dsvlp.errors import DataError
from dsvlp.types import ImageSource, Sample

MAX_TEXT = 4096  # characters
NO_CLASS = "answer outside the answer table"
ALL_OUTSIDE = "question with every answer outside the answer table"


def text_problem(text: str) -> str:
    """Returns why a text cannot be stored, "" where it can."""
    if not text.strip():
        return "empty text"
    if len(text) > MAX_TEXT:
        return f"text above {MAX_TEXT} characters"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "text not UTF-8"
    return ""


def _id_problem(images: tuple[ImageSource, ...]) -> str:
    problem = next(filter(None, (text_problem(image.id) for image in images)), "")
    return problem and f"image id: {problem}"


class Collector:
    """Takes samples one after another and writes the tables at the end.

    Args:
        folder: for what is needed on the way.
        rule: where the answer table comes from.

    Attributes:
        images: how many images have appeared.
        skipped: samples left out, by reason.
        outside: answers, and questions by all of theirs, that are in no class; these stay.
    """

    def __init__(self, folder: Path, rule: AnswerRule) -> None:
        self.skipped, self.outside = Tally(), Tally()
        self._folder, self._rule = folder, rule
        self._numbers: dict[str, tuple[int, int]] = {}  # id -> image number, hash of its place
        self._tasks, self._labels = array("B"), array("i")
        self._images, self._offsets = array("q"), array("q", [0])
        self._answers: dict[int, str] = {}  # sample number -> JSON
        self._phrases: dict[str, tuple[np.ndarray, list[int]]] = {}  # id -> (triples, its samples by ordinal)
        self._spool = (folder / "spool.bin").open("wb")

    @property
    def images(self) -> int:
        return len(self._numbers)

    def add(self, sample: Sample) -> list[ImageSource]:
        """Takes one sample and returns those of its images that had not appeared before.

        Raises:
            DataError: the sample has no image, an unknown task, or an id that names two different files.
        """
        if sample.task not in TASKS or not 1 <= len(sample.images) <= 2:
            raise DataError(
                f"{sample.where}: a sample of task {sample.task!r} with {len(sample.images)} images",
                f"one of {', '.join(TASKS)} with one or two images",
            )
        problem = text_problem(sample.text) or _id_problem(sample.images)
        number = -1 if problem else len(self._tasks)
        first = sample.images[0]
        if first.box_phrases is not None:
            self._phrases.setdefault(first.id, (first.box_phrases, []))[1].append(number)
        if problem:
            self.skipped.add(problem, f"{sample.where}: {sample.text[:60]!a}")
            return []
        fresh: list[ImageSource] = []
        rows = [self._number(image, sample.where, fresh) for image in sample.images]
        self._images.extend(rows if len(rows) == 2 else [rows[0], -1])
        self._tasks.append(TASKS.index(sample.task))
        self._labels.append(sample.label)
        if sample.answers:
            self._answers[number] = json.dumps(sample.answers)
        self._offsets.append(self._offsets[-1] + self._spool.write(sample.text.encode()))
        return fresh

    def _number(self, image: ImageSource, where: str, fresh: list[ImageSource]) -> int:
        place = hash((image.path, image.offset, image.size))
        known = self._numbers.get(image.id)
        if known is None:
            known = self._numbers[image.id] = (len(self._numbers), place)
            fresh.append(image)
        elif known[1] != place:
            raise DataError(
                f"{where}: the image id {image.id!r} names {image.path} and also another file",
                "one file for each id",
                "Rename one of them",
            )
        return known[0]

    def write_tables(self, folder: Path, row_of: np.ndarray, lost: str) -> tuple[int, list[str]]:
        """Writes texts, sample index and optional tables, without the samples whose image is not stored.

        Args:
            folder: where they go.
            row_of: int64 [images], the stored row of each image number, -1 where it is left out.
            lost: the reason under which samples of such images are counted.

        Returns:
            how many samples were written, and the names of the optional tables.

        Raises:
            DataError: no answer is frequent enough for the table.
        """
        self._spool.close()
        np.save(self._folder / "spool.npy", np.frombuffer(self._offsets, "<i8"))
        spool = Strings(self._folder, "spool", len(self._tasks))
        numbers = np.frombuffer(self._images, "<i8").reshape(-1, 2)
        rows = np.where(numbers < 0, -1, row_of[numbers])
        kept = np.flatnonzero((rows[:, 0] >= 0) & ((rows[:, 1] >= 0) | (numbers[:, 1] < 0)))
        for number in np.setdiff1d(np.arange(len(rows)), kept)[:20]:
            self.skipped.add(lost, f"sample {number}: {spool[int(number)][:60]!a}")
        if len(rows) > len(kept):
            self.skipped.counts[lost] = len(rows) - len(kept)
        samples = np.zeros(len(kept), SAMPLE)
        samples["task"] = np.frombuffer(self._tasks, "u1")[kept]
        samples["label"] = np.frombuffer(self._labels, "<i4")[kept]
        samples["rows"] = rows[kept]
        order = np.argsort(samples["rows"][:, 0], kind="stable")
        samples, kept = samples[order], kept[order]
        samples["text"] = np.arange(len(kept))
        images = int((row_of >= 0).sum())
        write_samples(folder, samples, images)
        write_strings(folder, "texts", (spool.raw(int(number)) for number in kept))
        return len(kept), self._write_optional(folder, kept, row_of)

    def _write_optional(self, folder: Path, kept: np.ndarray, row_of: np.ndarray) -> list[str]:
        names = []
        if self._answers:
            write_strings(folder, "answers", (self._answers.get(int(number), "[]") for number in kept))
            self._write_answer_table(folder, kept)
            names.append("answers")
        if self._phrases:
            text_of = np.full(len(self._tasks) + 1, -1, np.int64)  # the last entry: number -1, a refused text
            text_of[kept] = np.arange(len(kept))
            write_strings(folder, "phrases", self._phrase_rows(text_of, row_of))
            names.append("phrases")
        return names

    def _write_answer_table(self, folder: Path, kept: np.ndarray) -> None:
        """Writes the answer table; what has no place in it is counted."""
        told = [json.loads(self._answers[number]) for number in kept.tolist() if number in self._answers]
        table = self._rule.table(told)
        answers.write_table(folder, table)
        known = set(table.names)
        for question in told:
            strange = [repr(answer) for answer, _ in question if answer not in known]
            for answer in strange:
                self.outside.add(NO_CLASS, answer)
            if len(strange) == len(question):
                self.outside.add(ALL_OUTSIDE, " or ".join(strange))

    def _phrase_rows(self, text_of: np.ndarray, row_of: np.ndarray) -> Iterator[bytes]:
        for id, (number, _) in self._numbers.items():
            if row_of[number] < 0:
                continue
            triples, numbers = self._phrases.get(id, (np.zeros((0, 3), np.int64), []))
            triples = triples.astype("<i8")
            known = (triples[:, 0] >= 0) & (triples[:, 0] < len(numbers))
            ordinals = np.where(known, triples[:, 0], 0)
            triples[:, 0] = np.where(known, text_of[np.asarray(numbers or [-1])[ordinals]], -1)
            yield triples.tobytes()
