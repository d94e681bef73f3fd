"""What the synthetic detector sees: the shapes, and nothing that tells which of them a caption names."""

from collections import Counter

import numpy as np
import pytest

from dsvlp.data.check import rows
from dsvlp.data.dataset import Dataset
from dsvlp.data.synthetic import World, ensure_objects, ensure_world
from dsvlp.data.synthetic.objects import BACKGROUND, OBJECT_LABELS, objects_of
from dsvlp.data.synthetic.world import BOX_LABELS
from dsvlp.recipe import Synthetic

SETTINGS = Synthetic(images=60, image_size=64, max_shapes=3)
N, F = 6, 16


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    betons = ensure_world(SETTINGS, folder)
    return [(beton, ensure_objects(SETTINGS, beton, N, F)) for beton in betons]


@pytest.fixture(scope="module")
def datasets(made):
    return [Dataset.open(beton, features=features) for beton, features in made]


def test_every_shape_is_an_object_with_its_class_and_nearly_its_box(datasets):
    for dataset in datasets:
        assert dataset.objects == OBJECT_LABELS
        for stored in rows(dataset):
            found = dataset.features.read(np.array([stored.row]))
            labels, boxes = found.labels[0][found.mask[0]], found.boxes[0][found.mask[0]]
            shapes = labels != BACKGROUND
            assert sorted(labels[shapes]) == sorted(BOX_LABELS.ids.index(id) for id in stored.box_labels)
            for label, box in zip(labels[shapes], boxes[shapes], strict=True):
                place = stored.box_labels.tolist().index(BOX_LABELS.ids[label])
                assert np.abs(box * 64 - stored.boxes_xyxy[place]).max() < 64 * 0.021


def test_a_class_is_known_by_its_feature(datasets):
    """The nearest mean of training names most held-out shapes: there is something to learn."""
    train, held_out = (dataset.features.read(np.arange(dataset.images)) for dataset in datasets)
    seen = sorted(set(train.labels[train.mask]))
    means = np.stack([train.features[train.labels == label].astype(np.float32).mean(0) for label in seen])
    known = held_out.mask & np.isin(held_out.labels, seen)
    features, labels = held_out.features[known].astype(np.float32), held_out.labels[known]
    nearest = np.array(seen)[((features[:, None] - means) ** 2).sum(-1).argmin(1)]
    assert (nearest == labels).mean() > 0.8


def test_neither_place_nor_number_tells_the_shapes(datasets):
    regions = datasets[1].features.read(np.arange(datasets[1].images))
    places = Counter(np.flatnonzero((row != BACKGROUND) & (row >= 0))[0] for row in regions.labels)
    counts = Counter(regions.mask.sum(1).tolist())
    assert len(places) >= 3 and len(counts) >= 3
    shapes = (regions.labels != BACKGROUND) & regions.mask
    assert regions.confidences[shapes].min() >= 0.6 > regions.confidences[~shapes].max()


def test_a_scenes_objects_do_not_depend_on_how_many_scenes_or_who_asks():
    world = World(3, "train", 64, 2, F)
    boxes = np.array([[0.1, 0.1, 0.3, 0.3]] * len(world.scene(7).shapes), np.float32)
    one, other = (objects_of(world, 7, boxes, N) for _ in range(2))
    for name in ("features", "boxes_xyxy", "labels", "confidences"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert int(objects_of(world, 7, boxes, 1).counts[0]) == len(boxes)  # the writer keeps the most confident


def test_they_are_made_once_for_each_shape(made):
    beton, features = made[0]
    before = (features / "manifest.json").stat().st_mtime_ns
    assert ensure_objects(SETTINGS, beton, N, F) == features
    assert (features / "manifest.json").stat().st_mtime_ns == before
    other = ensure_objects(SETTINGS, beton, 3, 8)
    assert other != features and Dataset.open(beton, features=other).features.objects == 3
