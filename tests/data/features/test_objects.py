"""Micro-batches of objects: right, alike on any world and after a resume, and without a picture read."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dsvlp import recipe
from dsvlp.data.dataset import Dataset
from dsvlp.data.fit import check_annotations, facts
from dsvlp.data.loader import Loader
from dsvlp.data.rows import RowReader
from dsvlp.errors import DataError
from tests.data.features.regions_of_noise import CLASSES, WIDTH, make_features
from tests.data.pictures_of_noise import make_dataset, make_tokenizer
from tests.data.test_loader import assert_equal, take

CAPTIONS = [1, 2, 3, 4, 5] * 3


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    pictures = make_dataset(tmp_path_factory.mktemp("objects"), "noise", CAPTIONS, rows_per_shard=6)
    dataset = make_features(pictures, pictures.path.with_suffix(".features"))
    return dataset, make_tokenizer([dataset])


@pytest.fixture(autouse=True)
def no_picture_is_read(monkeypatch):
    def refuse(self, rows):
        raise AssertionError("a picture was read")

    monkeypatch.setattr(RowReader, "read", refuse)


def make_recipe(*overrides: str) -> recipe.Recipe:
    return recipe.load(
        "tiny_semvlp",
        [
            "model.objects=4",
            f"model.feature_width={WIDTH}",
            "model.text.vocabulary=256",
            "objectives.mop.classes=3",
            "batch.global_pairs=12",
            "batch.micro_pairs=2",
            "data.workers=1",
            *overrides,
        ],
    )


def make_loader(objects, *overrides: str, datasets=None, **options) -> Loader:
    dataset, tokenizer = objects
    options = {"rank": 0, "world": 1, "split": "train", **options}
    return Loader(make_recipe(*overrides), datasets or [dataset], tokenizer, **options)


def test_a_batch_holds_the_stored_regions_of_its_rows(objects):
    dataset, _ = objects
    for batch in take(make_loader(objects), 12):
        right = dataset.features.read(batch.rows.numpy())
        assert batch.images.dtype == torch.float16 and batch.images.shape == (2, 4, WIDTH + 4)
        np.testing.assert_array_equal(batch.images[..., :WIDTH].numpy(), right.features)
        np.testing.assert_array_equal(batch.images[..., WIDTH:].numpy(), right.boxes.astype(np.float16))
        np.testing.assert_array_equal(batch.image_mask.numpy(), right.mask)
        np.testing.assert_array_equal(batch.object_labels.numpy(), right.labels)
        np.testing.assert_array_equal(batch.object_confidences.numpy(), right.confidences)
        assert (dataset.samples["rows"][batch.samples, 0] == batch.rows.numpy()).all()


@pytest.mark.parametrize("captions", [1, 2])
def test_the_world_and_the_workers_change_nothing(objects, captions):
    settings = (f"data.captions_per_image={captions}", "batch.micro_pairs=4")
    alone = take(make_loader(objects, *settings), 6)
    per_rank = [take(make_loader(objects, *settings, "data.workers=3", rank=r, world=3), 2) for r in range(3)]
    dealt = [batch for together in zip(*per_rank, strict=True) for batch in together]
    assert [batch.mode for batch in dealt] == [batch.mode for batch in alone]
    assert_equal([replace(batch, mode=None) for batch in alone], [replace(b, mode=None) for b in dealt])
    assert all(len(batch.images) == 4 // captions for batch in alone)


def test_a_resume_in_mid_epoch_goes_on_bit_for_bit(objects):
    through = [replace(batch, mode=None) for batch in take(make_loader(objects), 24)]
    with make_loader(objects) as first:
        for _ in range(12):
            next(first)
        state = first.state_dict()
    again = make_loader(objects, "data.workers=0")
    again.load_state_dict(state)
    assert_equal(through[12:], [replace(batch, mode=None) for batch in take(again, 12)])


def test_other_features_are_another_run(objects, tmp_path):
    dataset, _ = objects
    state = make_loader(objects).state_dict()
    other = make_features(dataset, tmp_path / "other.features", [4] * dataset.images)
    with pytest.raises(DataError, match="features: "):
        make_loader(objects, datasets=[other]).load_state_dict(state)


def test_an_evaluation_counts_every_sample_once(objects):
    seen = []
    for rank in range(2):
        with make_loader(objects, rank=rank, world=2, split="evaluate") as loader:
            seen += [number for batch in loader for number in batch.samples[batch.weight > 0].tolist()]
    assert sorted(seen) == list(range(45))


def test_two_sources_are_read_each_from_its_own_features(objects, tmp_path):
    first, _ = objects
    pictures = make_dataset(tmp_path, "more", [1] * 9, seed=50)
    second = make_features(pictures, tmp_path / "more.features", dtype="int8")
    sources = f'data.train=[{{path="a", features="a"}}, {{path="{second.path}", features="b"}}]'
    tokenizer = make_tokenizer([first, second])
    for batch in take(make_loader((first, tokenizer), sources, datasets=[first, second]), 12):
        for image, number in zip(batch.images, batch.rows.tolist(), strict=True):
            owner, row = (first, number) if number < first.images else (second, number - first.images)
            np.testing.assert_array_equal(
                image[:, :WIDTH].numpy(), owner.features.read(np.array([row])).features[0]
            )


def test_a_batch_that_is_kept_is_never_overwritten(objects):
    with make_loader(objects) as loader:
        kept = next(loader)
        before = kept.images.clone()
        for _ in range(30):
            next(loader)
        assert torch.equal(kept.images, before)


def test_the_facts_name_classes_and_width(objects):
    dataset, tokenizer = objects
    found = facts([dataset], tokenizer)
    assert found.objects == CLASSES and found.feature_width == WIDTH
    assert facts([Dataset.open(dataset.path)], tokenizer).feature_width == 0


def test_features_that_do_not_fit_the_recipe_are_refused_with_the_way_out(objects):
    dataset, _ = objects
    check_annotations(make_recipe(), [dataset])
    for overrides, message in (
        (["model.objects=6"], r"4 objects an image .*width 8.*Set model\.objects=4"),
        (["model.feature_width=9"], r"Expected 4 of width 9.*model\.feature_width=8"),
        (["objectives.mop.classes=2"], r"3 classes \(noise\).*objectives\.mop\.classes=3"),
    ):
        with pytest.raises(DataError, match=message):
            check_annotations(make_recipe(*overrides), [dataset])
    with pytest.raises(DataError, match=r"noise\.beton has no region features.*dsvlp data features"):
        check_annotations(make_recipe(), [Dataset.open(dataset.path)])
    with pytest.raises(DataError, match="no region features"):
        check_annotations(make_recipe(), [dataset], Dataset.open(dataset.path))


def test_a_recipe_that_names_data_without_features_is_refused(objects):
    named = 'data.train=[{path="x.beton"}]'
    with pytest.raises(
        Exception, match=r"data\.train\[0\]\.features is not set.*dsvlp data features x\.beton"
    ):
        make_recipe(named)
    with pytest.raises(Exception, match=r"data\.validation_features is not set"):
        make_recipe("data.validation=y.beton")
