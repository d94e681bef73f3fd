"""Questions with answers: VQA v2, GQA and Visual Genome's, from the files as they are published.

LXMERT, and SemVLP after it, trains on all three at once; their answers then stand in one table
(`dsvlp data write ... --answers`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dsvlp.data.readers.base import Reader, existing, get, inside, load_json, parse_json, records
from dsvlp.data.readers.vqa_answers import normalised
from dsvlp.errors import DataError
from dsvlp.types import ImageSource, Sample

Scored = tuple[tuple[str, float], ...]

GENOME_FOLDERS = ("VG_100K", "VG_100K_2", ".")


def read_vqa(questions: Path | str, images: Path | str, annotations: Path | str | None = None) -> Reader:
    """Returns the reader of VQA v2, its answers as the official evaluation spells them.

    All ten are, not only the one that counts for the table: "Yes." then is a "yes", where ViLT, which
    compares people's own words with the table's, drops it.

    Args:
        questions: `v2_OpenEnded_mscoco_*_questions.json`.
        images: the folder of COCO's pictures of 2014 or 2015.
        annotations: `v2_mscoco_*_annotations.json` of the same split; None: questions without answers.

    Raises:
        DataError: a file is absent or not of this format; names file, record and key.
    """
    asked = existing(questions, "questions")
    answered = existing(annotations, "annotations") if annotations is not None else None
    samples = partial(_vqa, asked, answered=answered)
    return _reader("vqa", questions, images, samples, annotations=str(annotations))


def read_gqa(questions: Path | str, images: Path | str) -> Reader:
    """Returns the reader of GQA.

    Args:
        questions: `train_balanced_questions.json`, or another of its files; test's have no answers. Or the
            folder of a split in several, `train_all_questions`; one of them is held at a time.
        images: the folder of its pictures.

    Raises:
        DataError: a file is absent or not of this format; names file, record and key.
    """
    return _reader("gqa", questions, images, partial(_gqa, _files(Path(questions))))


def read_genome(questions: Path | str, images: Path | str) -> Reader:
    """Returns the reader of Visual Genome's questions.

    Answers lose their full stop and their capitals, so that "Red." is VQA's and GQA's "red".

    Args:
        questions: `question_answers.json`.
        images: the folder of its pictures, or the one that holds VG_100K and VG_100K_2.

    Raises:
        DataError: a file is absent or not of this format; names file, record and key.
    """
    return _reader("vgqa", questions, images, partial(_genome, existing(questions, "questions")))


def _reader(
    name: str,
    questions: Path | str,
    images: Path | str,
    samples: Callable[[Path], Iterator[Sample]],
    **arguments: str,
) -> Reader:
    """Returns a reader; `samples`: the images' folder -> what it reads."""
    folder = existing(images, "images", folder=True)
    return Reader(
        name, str(questions), lambda: samples(folder), arguments={"images": str(images), **arguments}
    )


def _files(path: Path) -> list[Path]:
    """Returns the file of questions, or those in a folder, by their names."""
    if not path.is_dir():
        return [existing(path, "questions")]
    files = sorted(path.glob("*.json"))
    if not files:
        raise DataError(
            f"{path} has no questions",
            "files *.json, as in GQA's train_all_questions",
            "Check the path",
        )
    splits = {re.sub(r"_\d+$", "", file.stem): file.name for file in files}
    if len(splits) > 1:
        raise DataError(
            f"{path} holds more than one split: {' and '.join(list(splits.values())[:2])}",
            "the files of one, as train_all_questions_0.json, train_all_questions_1.json, ...",
            "Name one file, or move the files of a split into a folder of their own",
        )
    return files


def scored(answers: Iterable[str]) -> Scored:
    """Returns the different answers of ten people with their VQA accuracy, the most frequent first.

    An answer of n people is right by min(1, n / 3), averaged over all choices of nine of the ten: 0.3, 0.6,
    0.9 and 1 for 1, 2, 3 and more.
    """
    return tuple((answer, min(1.0, round(0.3 * n, 1))) for answer, n in Counter(answers).most_common())


def _vqa(asked: Path, folder: Path, answered: Path | None) -> Iterator[Sample]:
    value = load_json(asked)
    split = get(value, "data_subtype", str, str(asked)).replace("-dev", "")
    answers = _vqa_answers(answered) if answered is not None else None
    for where, record in records(value, "questions", asked):
        name = f"COCO_{split}_{get(record, 'image_id', int, where):012d}.jpg"
        number = get(record, "question_id", int, where)
        if answers is not None and number not in answers:
            raise DataError(
                f"{where}: question_id {number} is not in {answered}",
                "the annotations of the same split",
                "Give both files of one split",
            )
        image = ImageSource(name, inside(folder, name, where))
        told = answers[number] if answers is not None else ()
        yield Sample("question", (image,), get(record, "question", str, where), told, where=where)


def _vqa_answers(path: Path) -> dict[int, Scored]:
    """Returns question id -> its answers."""
    return {
        get(record, "question_id", int, where): scored(
            normalised(get(one, "answer", str, where)) for one in get(record, "answers", list, where)
        )
        for where, record in records(load_json(path), "annotations", path)
    }


def _gqa(files: Sequence[Path], folder: Path) -> Iterator[Sample]:
    for asked in files:
        for number, record in load_json(asked).items():
            where = f"{asked}: question {number}"
            name = f"{get(record, 'imageId', str, where)}.jpg"
            told: Scored = ((get(record, "answer", str, where), 1.0),) if "answer" in record else ()
            image = ImageSource(name, inside(folder, name, where))
            yield Sample("question", (image,), get(record, "question", str, where), told, where=where)


def _genome(asked: Path, folder: Path) -> Iterator[Sample]:
    value: Any = parse_json(asked.read_bytes(), str(asked))
    for where, record in records({"images": value}, "images", asked):
        image = _genome_image(folder, f"{get(record, 'id', int, where)}.jpg", where)
        for number, one in enumerate(get(record, "qas", list, where)):
            place = f"{where} qas[{number}]"
            answer = get(one, "answer", str, place).lower().removesuffix(".")
            yield Sample(
                "question", (image,), get(one, "question", str, place), ((answer, 1.0),), where=place
            )


def _genome_image(folder: Path, name: str, where: str) -> ImageSource:
    paths = [inside(folder, f"{part}/{name}", where) for part in GENOME_FOLDERS]
    return ImageSource(name, next((path for path in paths if path.is_file()), paths[-1]))
