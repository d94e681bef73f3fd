"""SPL's labels from region features: which objects count, and that a step learns from them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dsvlp import recipe
from dsvlp.data.dataset import Dataset
from dsvlp.data.features.layout import OBJECT
from dsvlp.data.features.rows import RegionRows, RegionSource
from dsvlp.data.features.writer import Options, write
from dsvlp.data.opened import Data, open_data
from dsvlp.data.pseudo import PseudoLabels
from dsvlp.data.rows import StoredRow
from dsvlp.data.synthetic import ensure_objects, ensure_world
from dsvlp.errors import DataError
from dsvlp.recipe import Recipe, Source
from dsvlp.system import TrainRequest, build
from dsvlp.types import LabelTable

TABLE = LabelTable("seen", (10, 20, 30), ("sky", "tree", "dog"))
SMALL = (
    *("data.synthetic.images=12", "data.synthetic.image_size=64", "model.image_size=64", "data.workers=0"),
    *("batch.global_pairs=4", "batch.micro_pairs=4", "objectives.segl=false", "objectives.spl.weight=1.0"),
    *("model.visual_queries=5", "data.augment.flip=false", "data.augment.scale=[1.0, 1.0]"),
)


class Stored:
    """Features of one image of which everything but the features stands in memory."""

    def __init__(self, about: np.ndarray) -> None:
        self.table, self._about = TABLE, about

    def about(self, rows: np.ndarray) -> np.ndarray:
        """Returns the image's objects for each row."""
        return np.stack([self._about] * len(rows))


def seen(*objects: tuple[int, float, int]) -> Stored:
    """Returns features of objects (class, confidence, whether it is one); the k-th is k/10 wide."""
    about = np.zeros(len(objects), OBJECT)
    for number, (label, confidence, there) in enumerate(objects):
        about[number] = ([0, 0, (number + 1) / 10, 1], label, confidence, 1, there)
    return Stored(about)


def chosen(pseudo: PseudoLabels, features: Stored) -> StoredRow:
    nothing = np.zeros(0, np.uint8)
    own = StoredRow(nothing, 20, 40, np.ones((1, 4), "<f4"), np.array([3], "<i4"), nothing)
    (row,) = pseudo.given(features, np.array([0]), [own])
    return row


def test_labels_are_the_most_confident_objects_above_the_floor_as_stored_ids_and_pixels():
    features = seen((0, 0.3, 1), (2, 0.9, 1), (1, 0.5, 1), (1, 0.99, 0), (-1, 0.8, 1), (0, 0.1, 1))
    row = chosen(PseudoLabels(9, 0.3), features)
    assert row.box_labels.tolist() == [30, 20, 10]
    np.testing.assert_allclose(row.boxes_xyxy[:, 2], [8, 12, 4])
    np.testing.assert_allclose(row.boxes_xyxy[:, 3], 20)


def test_no_more_labels_than_queries():
    features = seen((0, 0.3, 1), (2, 0.9, 1), (1, 0.5, 1))
    assert chosen(PseudoLabels(2, 0.0), features).box_labels.tolist() == [30, 20]
    assert chosen(PseudoLabels(2, 0.95), features).box_labels.tolist() == []


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pseudo")


def of_files(cache: Path, *overrides: str) -> Recipe:
    """Returns tiny SVL with SPL on a world's files, whose labels come from features of the same world."""
    loaded = recipe.load("tiny_svl", [*SMALL, *overrides])
    train, held_out = ensure_world(loaded.data.synthetic, cache)
    made = [str(ensure_objects(loaded.data.synthetic, path, 6, 8)) for path in (train, held_out)]
    source = Source(path=str(train), features=made[0])
    data = loaded.data.model_copy(
        update={"train": [source], "validation": str(held_out), "validation_features": made[1]}
    )
    return loaded.model_copy(update={"data": data})


def test_a_step_of_svl_learns_from_the_labels_of_features(cache: Path):
    loaded = of_files(cache)
    with open_data(loaded, cache) as data:
        assert data.facts.boxes == data.datasets[0].objects, "SPL's head is as wide as the features' table"
        batch = next(data.train)
        assert batch.box_labels is not None and batch.box_labels.shape[1] <= 5
        _same_classes(data, batch)
        system = build(loaded, data.facts)
        loss = system(TrainRequest(system.prepare(batch)))["spl"]
        loss.sum.backward()
        assert float(loss.count) == float((batch.box_labels >= 0).sum()) > 0
        assert system.objectives["spl"].head.weight.grad.abs().sum() > 0
        with data.validation() as validation:
            assert next(validation).box_labels is not None


def _same_classes(data: Data, batch) -> None:
    """Asserts that each image's classes are those of its row's most confident objects."""
    about = data.datasets[0].features.about(batch.rows.numpy())
    for labels, objects in zip(batch.box_labels.tolist(), about, strict=True):
        there = objects[(objects["is_object"] != 0) & (objects["label"] >= 0)]
        best = there[np.argsort(-there["confidence"], kind="stable")[:5]]["label"].tolist()
        assert [label for label in labels if label >= 0] == best


def test_a_floor_takes_the_labels_below_it_away(cache: Path):
    with open_data(of_files(cache, "objectives.spl.confidence=0.99"), cache) as data:
        some = next(data.train)
    with open_data(of_files(cache), cache) as data:
        every = next(data.train)
    assert torch.equal(some.rows, every.rows)
    assert (some.box_labels >= 0).sum() < (every.box_labels >= 0).sum()


def test_features_without_classes_are_refused_for_spl(cache: Path, tmp_path: Path):
    loaded = of_files(cache)
    dataset = Dataset.open(loaded.data.train[0].path, "quick")
    one = RegionRows(
        np.ones(1, np.int64),
        np.ones((1, 8), np.float16),
        np.array([[0, 0, 9, 9]], np.float32),
        np.full(1, -1),
        np.ones(1, np.float32),
    )
    source = RegionSource("drawn", "none", "none", 8, None, lambda first: iter([one] * dataset.images))
    write(source, dataset, tmp_path / "x.features", Options(2, progress=False))
    first = replace_source(loaded, str(tmp_path / "x.features"))
    with pytest.raises(DataError, match=r"has no boxes, which objectives.spl reads"):
        open_data(first, cache)


def replace_source(loaded: Recipe, features: str) -> Recipe:
    source = loaded.data.train[0].model_copy(update={"features": features})
    return loaded.model_copy(update={"data": loaded.data.model_copy(update={"train": [source]})})
