"""Answers of questions as classes: the table beside a data set, and which of a pair's answers is its label.

`answers.json` is a list of strings in the order of the classes. It is given, by a file or by the source
itself, or made when the data set is written: of the answers that enough questions give, the most frequent
first. Strings stay as they are: VQA's list has one that is empty, and without it all labels would shift.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsvlp.data.manifest import Manifest
from dsvlp.errors import DataError
from dsvlp.seed import uniform
from dsvlp.types import LabelTable

NAME = "answers.json"

Scored = Sequence[tuple[str, float]]
"""A question's answers, each with its score, the one that most people gave first."""


@dataclass(frozen=True)
class AnswerRule:
    """Where a data set's table comes from.

    Attributes:
        given: the table; None: it is made.
        least: questions whose first answer it must be for an answer to stand in a made table (VQA's 3,129
            answers are counted so).
    """

    given: LabelTable | None = None
    least: int = 1

    def table(self, questions: Iterable[Scored]) -> LabelTable:
        """Returns the table for a data set of these questions.

        Raises:
            DataError: no answer is frequent enough.
        """
        if self.given is not None:
            return self.given
        counts = Counter(question[0][0] for question in questions if question)
        kept = [answer for answer, count in counts.items() if count >= self.least]
        if not kept:
            raise DataError(
                f"none of {len(counts)} different answers is given to {self.least} questions",
                "at least one that is",
                "Lower --answer-count, or give a table with --answers",
            )
        return table_of(sorted(kept, key=lambda answer: (-counts[answer], answer)))


def table_of(answers: Sequence[str]) -> LabelTable:
    """Returns the answers as a label table, named after their hash: equal names are equal tables."""
    digest = hashlib.sha256(json.dumps(list(answers)).encode()).hexdigest()
    return LabelTable(f"answers {digest[:8]}", tuple(range(len(answers))), tuple(answers))


def table_beside(folder: Path, manifest: Manifest) -> LabelTable | None:
    """Returns a data set's table, None where it has no question with an answer."""
    return load_table(folder) if NAME in manifest.files else None


def load_table(path: Path) -> LabelTable:
    """Returns the table of an `answers.json`, or of the data set whose folder is given.

    Raises:
        DataError: there is none, or it is no list of different strings.
    """
    file = path / NAME if path.is_dir() else path
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read as an answer table: {error}",
            "a JSON list of strings, or a data set written with answers",
            "Check the path",
        ) from error
    if not isinstance(value, list) or not value or not all(isinstance(answer, str) for answer in value):
        raise DataError(f"{file} is no list of strings", 'a JSON list such as ["yes", "no"]')
    twice = next((answer for answer, count in Counter(value).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{file} has the answer {twice!r} twice", "different answers, one a class")
    return table_of(value)


Place = tuple[Path, LabelTable | None]
"""A data set's folder, and its answer table where it has one."""


def check_shared(sources: Sequence[Place], held_out: Place | None = None) -> None:
    """Checks that training data have answers, and that all that have some share one table.

    Captions alone may stand beside questions, as in LXMERT's data: they have no answer and count nothing.

    Raises:
        DataError: names the data sets that do not agree.
    """
    if all(table is None for _, table in sources):
        raise DataError(
            f"none of {', '.join(str(path) for path, _ in sources)} has questions with answers, which "
            f"objectives.qa reads",
            "at least one that has",
            "Write one from questions (`dsvlp data write vqa --help`), or set objectives.qa=false",
        )
    every = [*sources, held_out] if held_out is not None else sources
    (first, shared), *others = ((path, table) for path, table in every if table is not None)
    for path, table in others:
        if table != shared:
            raise DataError(
                f"{path} has the table {table.name!r} of {len(table.names)} answers, {first} has "
                f"{shared.name!r} of {len(shared.names)}",
                "one answer table for all sources and the validation data",
                f"Write {path} again with --answers {first}, or both with one --answers FILE",
            )


def write_table(folder: Path, table: LabelTable) -> None:
    """Writes `answers.json`."""
    text = json.dumps(list(table.names), ensure_ascii=False, indent=0)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


class Answers:
    """Draws a pair's label among its answers (SemVLP, Losses 4; as LXMERT).

    Args:
        table: the data's.
    """

    def __init__(self, table: LabelTable) -> None:
        self._class_of = {answer: number for number, answer in enumerate(table.names)}

    def labels(self, questions: Sequence[Scored], keys: np.ndarray) -> np.ndarray:
        """Returns int64 [P]: one answer's class, drawn by the scores; -1 where there is none in the table.

        Args:
            questions: each pair's answers; none for a caption.
            keys: int64 [P], the pairs' keys.
        """
        draws = uniform(keys, "qa", 1)[:, 0]
        drawn = [self._draw(*one) for one in zip(questions, draws.tolist(), strict=True)]
        return np.array(drawn, np.int64)

    def _draw(self, answers: Scored, draw: float) -> int:
        known = [(self._class_of[answer], score) for answer, score in answers if answer in self._class_of]
        place = draw * sum(score for _, score in known)
        for number, score in known:
            place -= score
            if place < 0:
                return number
        return known[-1][0] if known and known[-1][1] > 0 else -1
