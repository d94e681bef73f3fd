import logging
import threading
import time
from dataclasses import fields

import numpy as np
import pytest
import torch

from dsvlp.data.annotations import Annotations
from dsvlp.data.augment import draw_crops
from dsvlp.data.decode import CPUDecoder
from dsvlp.data.fetch import NONE, Fetcher
from dsvlp.data.opened import open_data
from dsvlp.data.pictures import Job, Studio
from dsvlp.data.rows import RowReader
from dsvlp.errors import DataError, RunError
from dsvlp.seed import fold, key_of
from dsvlp.types import Fetched
from tests.data.pictures_of_noise import damage, make_dataset, make_recipe, make_tokenizer

SAMPLES = torch.tensor([[3, 40], [17, NONE], [NONE, 8], [40, 40], [0, 3]])


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Two data sets: 20 samples of 10 images, then 24 of 12."""
    folder = tmp_path_factory.mktemp("fetch")
    sets = [
        make_dataset(folder, "first", [2] * 10, rows_per_shard=4),
        make_dataset(folder, "second", [2] * 12, seed=50),
    ]
    return sets, make_tokenizer(sets)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("dsvlp-decode", "fetched"))]


def fetch(noise, *requests, overrides=(), ahead=2) -> list[Fetched]:
    with Fetcher(make_recipe(*overrides), *noise, ahead) as fetcher:
        for step, samples in requests:
            fetcher.ask(step, 10 * step, lambda samples=samples: samples)
        return [fetcher.take() for _ in requests]


def assert_equal(one: Fetched, other: Fetched) -> None:
    for field in fields(Fetched):
        assert torch.equal(getattr(one, field.name), getattr(other, field.name)), field.name


def slow_image(datasets, recipe, step: int, sample: int) -> torch.Tensor:
    """The picture of a sample by the loader's own pieces, one at a time."""
    dataset, own = (datasets[0], sample) if sample < 20 else (datasets[1], sample - 20)
    row = RowReader(dataset, frozenset(), 1).read(dataset.samples["rows"][own : own + 1, 0])[0]
    key = fold(np.array([key_of(recipe.seed, step, "fetched")]), np.array([sample]))
    size = recipe.model.image_size
    sides = np.array([row.height]), np.array([row.width])
    (crop,) = draw_crops(key, *sides, np.array([recipe.data.augment.flip]), size, recipe.data.augment.scale)
    studio = Studio(CPUDecoder(), 0, Annotations(None, None))
    pictures = studio.blank(1, (size, size))
    assert studio.finish(studio.start([Job(row, crop, 0, "")], pictures), pictures) == [None]
    return pictures.images[0]


def test_every_place_holds_what_its_samples_name(noise):
    datasets, tokenizer = noise
    (found,) = fetch(noise, (5, SAMPLES))
    texts = [text for dataset in datasets for text in dataset.texts(dataset.samples["text"])]
    rows = [row for n, dataset in enumerate(datasets) for row in dataset.samples["rows"][:, 0] + 10 * n]
    for place, (image, text) in enumerate(SAMPLES.tolist()):
        assert found.rows[place].tolist() == [rows[s] if s != NONE else NONE for s in (image, text)]
        own, caption = (texts[s] if s != NONE else "" for s in (text, image))
        ids, mask, special = (torch.from_numpy(p) for p in tokenizer.encode([own, caption], 20))
        assert torch.equal(found.text_ids[place], ids[0]) and torch.equal(found.text_mask[place], mask[0])
        assert torch.equal(found.special_mask[place], special[0])
        assert torch.equal(found.caption_ids[place], ids[1])
        assert torch.equal(found.caption_mask[place], mask[1])
        expected = torch.zeros(3, 32, 32)
        if image != NONE:
            expected = slow_image(datasets, make_recipe(), 5, image)
        assert torch.equal(found.images[place], expected)
    assert torch.equal(found.samples, SAMPLES)
    assert found.places.tolist() == [50, 51, 52, 53, 54]
    assert found.text_mask.any(1).all()  # an empty text still has its two special tokens


def test_pixels_and_keys_depend_on_seed_step_and_sample_alone(noise):
    (first, again, other_step) = fetch(noise, (5, SAMPLES), (5, SAMPLES), (6, SAMPLES))
    assert_equal(first, again)
    assert not torch.equal(first.images[0], other_step.images[0])
    (reversed_,) = fetch(noise, (5, SAMPLES.flip(0)), overrides=("data.workers=0",))
    assert torch.equal(reversed_.images, first.images.flip(0))
    assert torch.equal(reversed_.image_keys, first.image_keys.flip(0))
    assert len({*first.image_keys.tolist(), *other_step.image_keys.tolist()}) == 2 * len(SAMPLES)
    (other_seed,) = fetch(noise, (5, SAMPLES), overrides=("seed=1",))
    assert not torch.equal(first.images[0], other_seed.images[0])


def test_nothing_to_fetch_gives_empty_places(noise):
    (found,) = fetch(noise, (0, torch.full((4, 2), NONE)))
    assert found.images.shape == (4, 3, 32, 32) and not found.images.any()
    assert (found.rows == NONE).all() and (found.text_mask.sum(1) == 2).all()


def test_a_request_is_begun_at_once_and_made_behind(noise):
    waits, running = threading.Event(), threading.Event()

    def names() -> torch.Tensor:
        running.set()
        assert waits.wait(30)
        return SAMPLES

    with Fetcher(make_recipe(), *noise, 1) as fetcher:
        fetcher.ask(5, 0, names)
        assert running.wait(30)  # ask came back while its names are not known
        waits.set()
        assert torch.equal(fetcher.take().images, fetch(noise, (5, SAMPLES))[0].images)


def test_a_bad_image_is_named_and_its_place_stays_empty(tmp_path, caplog):
    dataset = make_dataset(tmp_path, "bad", [2] * 12)
    tokenizer = make_tokenizer([dataset])
    damage(dataset, 3, b"garbage" * 3)
    samples = torch.tensor([[6, 7], [4, 6], [7, 0]])  # row 3 has the samples 6 and 7
    with (
        caplog.at_level(logging.WARNING),
        Fetcher(make_recipe("data.max_bad_share=0.5"), [dataset], tokenizer, 1) as fetcher,
    ):
        fetcher.ask(1, 0, lambda: samples)
        found = fetcher.take()
    assert found.rows.tolist() == [[NONE, 3], [2, 3], [NONE, 0]]
    assert not found.images[[0, 2]].any() and found.images[1].any()
    assert "bad image bad.beton/0003.jpg" in caplog.text
    assert (fetcher.bad.total, fetcher.bad.seen) == (2, 3)


def test_too_many_bad_images_stop_the_run(tmp_path):
    dataset = make_dataset(tmp_path, "bad", [1] * 12)
    damage(dataset, 3, b"garbage")
    with Fetcher(make_recipe("data.max_bad_share=0.01"), [dataset], make_tokenizer([dataset]), 1) as fetcher:
        fetcher.ask(1, 0, lambda: torch.tensor([[3, 3]]))
        with pytest.raises(DataError, match=r"1 images cannot be read, the last is bad\.beton/0003\.jpg"):
            fetcher.take()


def test_a_fetch_that_hangs_ends_in_an_error(noise):
    release = threading.Event()

    def names() -> torch.Tensor:
        release.wait(30)
        return SAMPLES

    fetcher = Fetcher(make_recipe("data.timeout_seconds=0.5"), *noise, 1)
    fetcher.ask(1, 0, names)
    with pytest.raises(RunError, match=r"'fetched negatives' made nothing for 0\.5 s"):
        fetcher.take()
    release.set()
    deadline = time.monotonic() + 30
    while any(t.name == "fetched negatives" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)


def test_closing_drops_what_was_asked_for_and_may_be_repeated(noise):
    fetcher = Fetcher(make_recipe(), *noise, 1)
    for step in range(4):
        fetcher.ask(step, 0, lambda: SAMPLES)
    fetcher.close()
    fetcher.close()
    fetcher.ask(5, 50, lambda: SAMPLES)
    assert_equal(fetcher.take(), fetch(noise, (5, SAMPLES))[0])
    fetcher.close()


def test_the_data_of_a_recipe_bring_a_fetcher_where_negatives_come_from_the_queue(noise, tmp_path):
    datasets, tokenizer = noise
    tokenizer.save(tmp_path / "tokenizer")
    paths = [
        f'data.train=[{{path="{datasets[0].path}"}}]',
        f'data.tokenizer="{tmp_path / "tokenizer"}"',
    ]
    views = ["objectives.itm.view=clean", "objectives.mlm.view=masked", "data.max_bad_share=0.5"]
    queue = ["objectives.itc={view='clean',queue=8}", "objectives.itm.negatives=queue"]
    with open_data(make_recipe(*paths)) as plain:
        assert plain.fetcher is None and plain.bad_images == 0
    with open_data(make_recipe(*paths, *views, *queue)) as data:
        assert data.fetcher is not None
        data.fetcher.ask(1, 0, lambda: torch.tensor([[3, 4]]))
        assert data.fetcher.take().rows.tolist() == [[1, 2]]
        data.fetcher.bad.note("one", "torn")
        data.train.bad.note("another", "torn")
        assert data.bad_images == 2
