"""Answers from the raw data to a batch's labels: the table, the draw, the mixture of sources."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsvlp.data.answers import AnswerRule, Answers, load_table, table_of
from dsvlp.data.collect import ALL_OUTSIDE, NO_CLASS
from dsvlp.data.dataset import Dataset
from dsvlp.data.fit import check_annotations
from dsvlp.data.loader import Loader
from dsvlp.data.manifest import load
from dsvlp.data.opened import open_data
from dsvlp.data.readers.base import Reader
from dsvlp.data.synthetic.questions import ANSWERS as ANSWERS_OF_WORLD
from dsvlp.data.writer import Options, write
from dsvlp.errors import DataError
from dsvlp.launch.preflight import check_answers
from dsvlp.recipe import Recipe
from dsvlp.seed import key_of
from dsvlp.types import Batch, ImageSource, Sample
from tests.data.pictures_of_noise import jpeg, make_recipe, make_tokenizer

QA = ("objectives.qa.weight=1.0",)
QUIET = Options(processes=1, progress=False, answer_count=2)
ANSWERS = ["red", "", "2", "red", ""]  # the i-th image's question is answered so; the rare "2" is pruned


def asked(folder: Path, name: str, given: list[str], **options: Any) -> Dataset:
    """Writes a picture with a caption and a question for each answer; without answers, captions alone."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number in range(max(len(given), 4)):
        path = folder / f"{name}-{number}.jpg"
        path.write_bytes(jpeg(number + len(name), 40, 48))
        image = ImageSource(path.name, path)
        samples.append(Sample("caption", (image,), f"{name} picture {number}"))
        if given:
            samples.append(Sample("question", (image,), f"what is {number}?", ((given[number], 1.0),)))
    settings = Options(**{**vars(QUIET), **options})
    write(Reader("test", name, lambda: iter(samples)), folder / f"{name}.beton", settings)
    return Dataset.open(folder / f"{name}.beton")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return asked(tmp_path_factory.mktemp("answers"), "asked", ANSWERS)


def loader(datasets: list[Dataset], recipe: Recipe) -> Loader:
    return Loader(recipe, datasets, make_tokenizer(datasets), rank=0, world=1, split="train")


def take(made: Loader, count: int) -> list[Batch]:
    with made:
        return [next(made) for _ in range(count)]


def test_a_table_has_the_frequent_answers_first_and_keeps_the_empty_one():
    questions = [
        [("", 1.0), ("b", 0.3)],
        [("b", 0.6)],
        [("", 1.0)],
        [("b", 1.0)],
        [("", 0.9)],
        [(" b", 1.0)],
        [],
    ]
    assert AnswerRule(least=1).table(questions).names == ("", "b", " b")
    assert AnswerRule(least=2).table(questions).names == ("", "b")
    aside = [[("b", 1.0), ("a", 0.3)]] * 2  # what one of ten people said is no class
    assert AnswerRule(least=2).table(aside).names == ("b",)
    given = table_of(["x"])
    assert AnswerRule(given, least=99).table(questions) is given
    with pytest.raises(DataError, match=r"none of 3 different answers is given to 4 questions.*answer-count"):
        AnswerRule(least=4).table(questions)


def test_the_table_lies_beside_the_data_and_pruned_answers_are_counted(dataset: Dataset):
    assert dataset.answers == load_table(dataset.path) == table_of(["", "red"])
    assert json.loads((dataset.path / "answers.json").read_text()) == ["", "red"]
    assert "answers.json" in dataset.manifest.files  # so a damaged one is noticed
    assert dataset.manifest.skipped.counts == {}, "it is no damage"
    assert dataset.manifest.outside.counts == {NO_CLASS: 1, ALL_OUTSIDE: 1}
    assert dataset.manifest.outside.examples[ALL_OUTSIDE] == ["'2'"]


def test_a_question_is_counted_where_none_of_its_answers_is_a_class(tmp_path: Path):
    image = ImageSource("a.jpg", tmp_path / "a.jpg")
    image.path.write_bytes(jpeg(0, 40, 48))
    answers = ((("red", 1.0), ("blue", 0.3)), (("blue", 1.0), ("grey", 0.6)), ())
    samples = [Sample("question", (image,), f"what {n}?", given) for n, given in enumerate(answers)]
    (tmp_path / "list.json").write_text('["red", "green"]')
    given = replace(QUIET, answers=tmp_path / "list.json")
    manifest = write(Reader("test", "x", lambda: iter(samples)), tmp_path / "x.beton", given)
    assert manifest.samples == 3, "they stay"
    assert manifest.outside.counts == {NO_CLASS: 3, ALL_OUTSIDE: 1}
    assert manifest.outside.examples[ALL_OUTSIDE] == ["'blue' or 'grey'"]
    assert load(tmp_path / "x.beton") == manifest


def test_where_nothing_is_outside_the_manifest_is_as_it_was_before_it_was_counted(tmp_path: Path):
    manifest = asked(tmp_path, "all", ["red"] * 4).manifest
    assert "outside" not in manifest.to_json() and load(tmp_path / "all.beton") == manifest


def test_a_table_may_be_given_by_a_file_or_by_another_data_set(dataset: Dataset, tmp_path: Path):
    (tmp_path / "list.json").write_text('["no", "", "yes"]')
    by_file = asked(tmp_path, "file", ["yes"] * 4, answers=tmp_path / "list.json")
    assert by_file.answers is not None and by_file.answers.names == ("no", "", "yes")
    assert asked(tmp_path, "other", ["red"] * 4, answers=dataset.path).answers == dataset.answers
    with pytest.raises(DataError, match="has no question with an answer"):
        asked(tmp_path, "captions", [], answers=dataset.path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ('{"yes": 0}', "no list of strings"),
        ("[]", "no list of strings"),
        ('["yes", 1]', "no list of strings"),
        ('["yes", "no", "yes"]', "'yes' twice"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str, says: str):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DataError, match=says):
        load_table(tmp_path / "list.json")


def test_one_of_several_answers_is_drawn_by_its_score():
    answers = Answers(table_of(["a", "b", "c"]))
    keys = np.array([key_of(number, "pair") for number in range(4000)])
    labels = answers.labels([[("a", 1.0), ("gone", 5.0), ("c", 0.5), ("b", 0.0)]] * 4000, keys)
    counts = Counter(labels.tolist())
    assert counts.keys() == {0, 2} and 0.63 < counts[0] / 4000 < 0.70  # 2/3, four deviations around
    assert (labels == answers.labels([[("a", 1.0), ("c", 0.5)]] * 4000, keys)).all()


def test_captions_pruned_answers_and_worthless_ones_have_no_label():
    keys = np.arange(4)
    labels = Answers(table_of(["a"])).labels([[], [("gone", 1.0)], [("a", 0.0)], [("a", 0.3)]], keys)
    assert labels.tolist() == [-1, -1, -1, 0]


def test_a_batch_has_the_label_of_each_pairs_own_text(dataset: Dataset):
    recipe = make_recipe(*QA)
    batches = take(loader([dataset], recipe), 30)
    seen = set()
    for batch in batches:
        assert batch.labels is not None and batch.labels.dtype == torch.int64
        for sample, label in zip(batch.samples.tolist(), batch.labels.tolist(), strict=True):
            (answer,) = [a for a, _ in dataset.answers_of(sample)] or [None]
            assert label == {"": 0, "red": 1}.get(answer, -1)
            seen.add(answer)
    assert seen == {None, "", "red", "2"}


def test_labels_do_not_depend_on_the_world(dataset: Dataset):
    recipe, tokenizer = make_recipe(*QA), make_tokenizer([dataset])
    alone = take(Loader(recipe, [dataset], tokenizer, rank=0, world=1, split="train"), 6)
    ranks = [Loader(recipe, [dataset], tokenizer, rank=r, world=2, split="train") for r in range(2)]
    two = [batch for pair in zip(*(take(rank, 3) for rank in ranks), strict=True) for batch in pair]
    for one, other in zip(alone, two, strict=True):
        assert torch.equal(one.labels, other.labels)


def test_without_the_objective_questions_are_not_dealt(dataset: Dataset):
    for batch in take(loader([dataset], make_recipe()), 10):
        assert batch.labels is None
        assert (dataset.samples["task"][batch.samples.numpy()] == 0).all()


def test_captions_may_stand_beside_questions(dataset: Dataset, tmp_path: Path):
    plain = asked(tmp_path, "plain", [])
    make_tokenizer([plain, dataset]).save(tmp_path / "tokenizer")
    paths = f"data.train=[{{path='{plain.path}'}}, {{path='{dataset.path}'}}]"
    with open_data(make_recipe(*QA, paths, f"data.tokenizer={tmp_path / 'tokenizer'}")) as opened:
        assert opened.facts.answers == dataset.answers
        labels = torch.cat([next(opened.train).labels for _ in range(12)])
        assert set(labels.tolist()) == {-1, 0, 1}


def test_the_synthetic_world_asks_where_answers_are_trained(tmp_path: Path):
    small = ("data.synthetic.images=12", "data.synthetic.image_size=48", "watch.validation_pairs=60")
    with open_data(make_recipe(*QA, *small), tmp_path) as opened:
        assert opened.facts.answers is not None and opened.facts.answers.names == ANSWERS_OF_WORLD
        trained = torch.cat([next(opened.train).labels for _ in range(20)])
        with opened.validation() as passed:
            held_out = torch.cat([batch.labels for batch in passed])
    for labels in (trained, held_out):
        assert labels.min() == -1 and labels.max() > 1  # captions, and more than yes and no


def test_sources_without_answers_or_with_another_table_are_refused_by_name(dataset: Dataset, tmp_path: Path):
    plain, other = asked(tmp_path, "plain", []), asked(tmp_path, "other", ["red"] * 4)

    def check(sources: list[Dataset], held_out: Dataset) -> None:
        """Checks where a run begins, and where a job is submitted."""
        paths = [f"data.train=[{', '.join(f'{{path={str(one.path)!r}}}' for one in sources)}]"]
        recipe = make_recipe(*QA, *paths, f"data.validation={held_out.path}")
        for verdict in (lambda: check_annotations(recipe, sources, held_out), lambda: check_answers(recipe)):
            try:
                verdict()
            except DataError as error:
                refused.append(str(error))

    refused: list[str] = []
    check([plain, dataset], plain)
    assert not refused
    check([plain], dataset)
    check([dataset, other], dataset)
    check([dataset], other)
    for first, second in (refused[:2], refused[2:4], refused[4:]):
        assert first == second
    assert re.search(r"none of .*plain\.beton has questions with answers", refused[0])
    for said in (refused[2], refused[4]):
        assert re.search(r"other\.beton has the table .* of 1 answers, .*asked\.beton has", said)


def test_a_question_whose_answer_a_mirror_would_make_wrong_is_not_mirrored(tmp_path: Path):
    said = asked(tmp_path, "sides", ["left", "left", "left", "left"], answer_count=1)
    plain = ("data.augment.flip=true", "data.augment.scale=[1.0, 1.0]")
    seen: dict[tuple[bool, int], set[bool]] = defaultdict(set)
    for batch in take(loader([said], make_recipe(*QA, *plain)), 80):
        for sample, picture, row in zip(batch.samples.tolist(), batch.images, batch.rows, strict=True):
            left, right = picture[..., :16].mean(), picture[..., 16:].mean()
            seen[bool(said.answers_of(sample)), int(row)].add(bool(left > right))
    assert {question for question, _ in seen} == {False, True}
    assert all(len(ways) == (1 if question else 2) for (question, _), ways in seen.items())
