"""Questions of VQA v2, GQA and Visual Genome, written as the official files are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsvlp.data.dataset import Dataset
from dsvlp.data.readers.questions import read_genome, read_gqa, read_vqa, scored
from dsvlp.data.writer import Options, write
from dsvlp.errors import DataError
from tests.data.raw_files import encoded, pixels

QUIET = Options(processes=1, progress=False, answer_count=1)
TEN = ["yes"] * 5 + ["no"] * 3 + ["maybe", ""]

VQA = {
    "data_subtype": "train2014",
    "questions": [
        {"image_id": 9, "question_id": 90, "question": "Is it red?"},
        {"image_id": 25, "question_id": 250, "question": "How many?"},
        {"image_id": 9, "question_id": 91, "question": "Is it blue?"},
    ],
}
ANNOTATIONS = {
    "annotations": [
        {"question_id": number, "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(answers, 1)]}
        for number, answers in ((90, TEN), (91, ["no"] * 10), (250, ["2"] * 10))
    ]
}


def save(folder: Path, name: str, value: Any, change: Callable[[Any], Any] = lambda v: None) -> Path:
    copied = json.loads(json.dumps(value))
    change(copied)
    (folder / name).write_text(json.dumps(copied))
    return folder / name


def pictures(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(pixels(number)))
    return folder


def test_scores_are_vqas_accuracy_of_each_answer() -> None:
    assert scored(TEN) == (("yes", 1.0), ("no", 0.9), ("maybe", 0.3), ("", 0.3))
    for count in range(1, 11):  # the official average over all nine of the ten
        others = [*["a"] * count, *["b"] * (10 - count)]
        average = sum(min(1.0, (others[:i] + others[i + 1 :]).count("a") / 3) for i in range(10)) / 10
        assert dict(scored(others))["a"] == pytest.approx(average)


def test_vqa_comes_through_with_every_answer(tmp_path: Path) -> None:
    images = pictures(tmp_path, "COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg")
    asked, told = save(tmp_path, "q.json", VQA), save(tmp_path, "a.json", ANNOTATIONS)
    manifest = write(read_vqa(asked, images, told), tmp_path / "a.beton", QUIET)
    assert (manifest.images, manifest.samples) == (2, 3)
    dataset = Dataset.open(tmp_path / "a.beton")
    assert dataset.texts(range(3)) == ["Is it red?", "Is it blue?", "How many?"]
    assert dataset.answers_of(0) == [("yes", 1.0), ("no", 0.9), ("maybe", 0.3), ("", 0.3)]
    assert dataset.answers is not None and dataset.answers.names == ("2", "no", "yes")  # majorities


def test_vqas_test_split_has_questions_without_answers(tmp_path: Path) -> None:
    asked = save(tmp_path, "q.json", VQA, lambda v: v.update(data_subtype="test-dev2015"))
    samples = list(read_vqa(asked, tmp_path).samples())
    assert [sample.answers for sample in samples] == [(), (), ()]
    assert samples[0].images[0].id == "COCO_test2015_000000000009.jpg"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("q", lambda v: v.pop("data_subtype"), r"q\.json has no key 'data_subtype'"),
        ("q", lambda v: v["questions"][1].pop("question"), r"questions\[1\] has no key 'question'"),
        ("q", lambda v: v["questions"][1].update(image_id="x"), r"questions\[1\]: image_id = 'x' is a str"),
        ("a", lambda v: v["annotations"].pop(), r"questions\[1\]: question_id 250 is not in .*a\.json"),
        ("a", lambda v: v["annotations"][0].update(answers={}), r"annotations\[0\]: answers = .*list"),
        ("a", lambda v: v["annotations"][0]["answers"][3].pop("answer"), r"annotations\[0\] has no key"),
    ],
)
def test_wrong_files_are_named_by_record_and_key(
    tmp_path: Path, file: str, change: Callable, message: str
) -> None:
    asked = save(tmp_path, "q.json", VQA, change if file == "q" else lambda v: None)
    told = save(tmp_path, "a.json", ANNOTATIONS, change if file == "a" else lambda v: None)
    with pytest.raises(DataError, match=message):
        list(read_vqa(asked, tmp_path, told).samples())


def test_gqa_and_genome_share_a_table_with_vqa(tmp_path: Path) -> None:
    gqa = {"17": {"imageId": "n1", "question": "Is it?", "answer": "no"}}
    gqa["18"] = {"imageId": "n1", "question": "What is it?", "answer": "cat"}
    genome = [
        {"id": 3, "qas": [{"question": "Is it red?", "answer": "No."}]},
        {"id": 4, "qas": [{"question": "Where?", "answer": "On a table."}]},
    ]
    images = pictures(tmp_path, "n1.jpg", "VG_100K/3.jpg", "VG_100K_2/4.jpg")
    names = pictures(tmp_path, "COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg")
    asked, told = save(tmp_path, "q.json", VQA), save(tmp_path, "a.json", ANNOTATIONS)
    write(read_vqa(asked, names, told), tmp_path / "vqa.beton", QUIET)
    shared = Options(processes=1, progress=False, answers=tmp_path / "vqa.beton")
    readers = {
        "gqa": read_gqa(save(tmp_path, "gqa.json", gqa), images),
        "vgqa": read_genome(save(tmp_path, "vg.json", genome), images),
    }
    for name, reader in readers.items():
        manifest = write(reader, tmp_path / f"{name}.beton", shared)
        dataset = Dataset.open(tmp_path / f"{name}.beton")
        assert dataset.answers == Dataset.open(tmp_path / "vqa.beton").answers
        assert dataset.answers_of(0) == [("no", 1.0)]
        assert not manifest.skipped.counts and set(manifest.outside.counts.values()) == {1}
    assert Dataset.open(tmp_path / "vgqa.beton").images == 2


def test_answers_are_spelt_as_the_evaluation_does_and_counted_then(tmp_path: Path) -> None:
    said = ["Yes", "yes.", "yes", "The yes", "No!", "no", "two", "2", "T-shirt", "t shirt"]
    answers = [{"answer": answer} for answer in said]
    asked = save(tmp_path, "q.json", VQA)
    told = save(tmp_path, "a.json", ANNOTATIONS, lambda v: v["annotations"][0].update(answers=answers))
    sample = next(iter(read_vqa(asked, tmp_path, told).samples()))
    assert sample.answers == (("yes", 1.0), ("no", 0.6), ("2", 0.6), ("t shirt", 0.6))


def test_a_split_of_gqa_may_be_a_folder_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "train_all_questions"
    folder.mkdir()
    with pytest.raises(DataError, match=r"train_all_questions has no questions.*Check the path"):
        read_gqa(folder, tmp_path)
    for number in (1, 0):
        record = {"imageId": f"n{number}", "question": f"Is it {number}?", "answer": "no"}
        save(folder, f"train_all_questions_{number}.json", {f"1{number}": record})
    samples = list(read_gqa(folder, tmp_path).samples())
    assert [sample.text for sample in samples] == ["Is it 0?", "Is it 1?"]
    assert "train_all_questions_1.json: question 11" in samples[1].where
    save(folder, "val_all_questions.json", {})
    with pytest.raises(DataError, match=r"more than one split: train_all_questions_1.json and val_all_"):
        read_gqa(folder, tmp_path)


def test_gqas_test_split_has_no_answers_and_wrong_records_are_named(tmp_path: Path) -> None:
    asked = save(tmp_path, "gqa.json", {"17": {"imageId": "n1", "question": "Is it?"}})
    assert next(iter(read_gqa(asked, tmp_path).samples())).answers == ()
    wrong = save(tmp_path, "wrong.json", {"17": {"imageId": "../n1", "question": "Is it?"}})
    with pytest.raises(DataError, match=r"wrong\.json: question 17.*leaves"):
        list(read_gqa(wrong, tmp_path).samples())
    genome = save(tmp_path, "vg.json", [{"id": 3, "qas": [{"question": "Is it red?"}]}])
    with pytest.raises(DataError, match=r"vg\.json: images\[0\] qas\[0\] has no key 'answer'"):
        list(read_genome(genome, tmp_path).samples())
