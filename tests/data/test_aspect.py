"""The loader where images keep their aspect: pixels, masks, maps and boxes, on the CPU and on a device."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dsvlp.data.annotations import Annotations
from dsvlp.data.augment import forbids_flip, place_image, whole
from dsvlp.data.dataset import Dataset
from dsvlp.data.decode import CPUDecoder
from dsvlp.data.device_studio import DeviceStudio
from dsvlp.data.frames import Framing
from dsvlp.data.loader import Loader
from dsvlp.data.pictures import Job, Pictures, Studio
from dsvlp.data.readers import coco
from dsvlp.data.rows import RowReader
from dsvlp.data.writer import Options, write
from dsvlp.errors import DataError
from dsvlp.types import Batch
from tests.batches import make_pixelbert_recipe
from tests.data.fake_device import FakeDevice
from tests.data.pictures_of_noise import TABLE, damage, make_dataset, make_tokenizer
from tests.data.raw_files import real

SIDES = ((40, 56), (64, 32), (48, 48), (30, 60), (60, 40), (40, 60), (50, 40))
SHORT, LONG, WINDOW = 64, 128, 4
FRAMING = Framing(SHORT, LONG)
SETTINGS = (
    f"model.image_size={SHORT}",
    f"model.longest_side={LONG}",
    f"data.bucket_window={WINDOW}",
    "data.augment.flip=true",
    "data.workers=1",
    "batch.global_pairs=8",
    "batch.micro_pairs=2",
)
CLOSE = 0.04  # of normalised pixels: the CPU rounds to whole levels between its steps


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    dataset = make_dataset(tmp_path_factory.mktemp("aspect"), "noise", [1] * 32, 10, sides=SIDES)
    return dataset, make_tokenizer([dataset])


def loader(data, *overrides: str, **options) -> Loader:
    dataset, tokenizer = data
    options = {"rank": 0, "world": 1, "split": "train", **options}
    return Loader(make_pixelbert_recipe(*SETTINGS, *overrides), [dataset], tokenizer, **options)


def take(loader: Loader, count: int) -> list[Batch]:
    with loader:
        return [next(loader) for _ in range(count)]


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for field in fields(Batch):
            mine, theirs = getattr(one, field.name), getattr(other, field.name)
            assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine is theirs, field.name


def sizes_of(dataset: Dataset, batch: Batch) -> list[tuple[int, int]]:
    """Slow reference: each image's frame, by plain arithmetic."""
    out = []
    for row in batch.rows.tolist():
        height, width = SIDES[row % len(SIDES)]
        scale = min(SHORT / min(height, width), LONG / max(height, width))
        out.append((int(height * scale + 1e-9), int(width * scale + 1e-9)))
    return out


def slow_picture(dataset: Dataset, row: int, frame: tuple[int, int]) -> torch.Tensor:
    stored = RowReader(dataset, frozenset(), 1).read(np.array([row]))[0]
    job = Job(stored, whole(stored.height, stored.width, frame), 0, "")
    (pixels,) = CPUDecoder().decode([job.request()])
    out = torch.empty(3, *frame)
    place_image(pixels, job.crop, (stored.height, stored.width), out)
    return out


def test_images_lie_in_the_upper_left_corner_the_mask_says_where_and_padding_is_zero(noise):
    dataset, _ = noise
    flipped = set()
    for batch in take(loader(noise), 16):
        assert batch.image_mask.dtype == torch.bool
        assert batch.image_mask.shape == (2, *batch.images.shape[2:])
        for image, mask, row, (height, width) in zip(
            batch.images, batch.image_mask, batch.rows.tolist(), sizes_of(dataset, batch), strict=True
        ):
            slow = torch.zeros(mask.shape, dtype=torch.bool)
            slow[:height, :width] = True
            assert torch.equal(mask, slow) and not image[:, ~mask].any()
            picture = slow_picture(dataset, row, (height, width))
            found = image[:, :height, :width]
            flipped.add(not torch.equal(found, picture))
            assert torch.equal(found, picture) or torch.equal(found, picture.flip(2))
    assert flipped == {False, True}


def test_a_direction_word_keeps_the_image_unflipped(noise, monkeypatch):
    from dsvlp.data import batches

    assert forbids_flip("on the left", False)
    monkeypatch.setattr(batches, "forbids_flip", lambda text, words: True)
    for batch in take(loader(noise, "data.workers=0"), 8):
        for image, row, (h, w) in zip(batch.images, batch.rows, sizes_of(noise[0], batch), strict=True):
            assert torch.equal(image[:, :h, :w], slow_picture(noise[0], int(row), (h, w)))


def test_the_world_the_micro_batch_and_the_accumulation_change_no_pixel(noise):
    alone = take(loader(noise), 24)  # six steps: a window and a half
    for world in (2, 4):
        per_rank = [take(loader(noise, rank=rank, world=world), 24 // world) for rank in range(world)]
        assert_equal(alone, [batch for together in zip(*per_rank, strict=True) for batch in together])
    whole_steps = take(loader(noise, "batch.micro_pairs=8"), 6)
    for name in ("images", "image_mask", "rows", "samples", "matched", "image_keys", "pair_keys"):
        for step, one in enumerate(whole_steps):
            pieces = torch.cat([getattr(batch, name) for batch in alone[4 * step : 4 * step + 4]])
            assert torch.equal(pieces, getattr(one, name)), name
    assert len({tuple(one.images.shape) for one in whole_steps}) > 1


def test_a_resume_within_a_window_goes_on_bit_for_bit(noise):
    through = take(loader(noise), 4 * 9)
    for steps in (1, 3, 4, 6):
        with loader(noise) as first:
            for _ in range(4 * steps):
                next(first)
            state = first.state_dict()
        assert state["steps"] == steps and state["bucket_window"] == WINDOW
        again = loader(noise, "data.workers=2", "data.prefetch=4")
        again.load_state_dict(state)
        assert_equal(through[4 * steps :], take(again, 4 * (9 - steps)))
    with pytest.raises(DataError, match=r"bucket_window: 4 there, 2 here"):
        loader(noise, "data.bucket_window=2").load_state_dict(state)


def test_an_epoch_covers_every_sample_once_and_partners_stand_in_the_batch(noise):
    batches = take(loader(noise, "batch.micro_pairs=8"), 8)  # two epochs
    for epoch in (batches[:4], batches[4:]):
        assert sorted(torch.cat([batch.samples for batch in epoch]).tolist()) == list(range(32))
    for batch in batches:
        assert batch.matched.sum() == 4
        own = {tuple(ids) for ids in batch.text_ids[batch.pairs[:, 1]].tolist()}
        assert {tuple(ids) for ids in batch.text_ids[batch.partner].tolist()} == own


def test_an_evaluation_counts_every_sample_once_on_any_world_unflipped(noise):
    dataset, _ = noise
    for world in (1, 2, 4):
        counted = []
        for rank in range(world):
            with loader(noise, rank=rank, world=world, split="evaluate", pairs=29) as batches:
                made = list(batches)
                assert len(made) == len(batches)
            for batch in made:
                counted += batch.samples[batch.weight > 0].tolist()
                frames = sizes_of(dataset, batch)
                for image, row, (h, w) in zip(batch.images, batch.rows, frames, strict=True):
                    assert torch.equal(image[:, :h, :w], slow_picture(dataset, int(row), (h, w)))
        assert len(counted) == len(set(counted)) == 29


def test_a_bad_image_of_any_shape_is_replaced_inside_the_canvas(tmp_path):
    dataset = make_dataset(tmp_path, "bad", [1] * 32, sides=((30, 60), (60, 30)))
    for row in range(0, 32, 4):
        damage(dataset, row, b"garbage" * 3)  # landscapes: half of the substitutes are portraits
    data = dataset, make_tokenizer([dataset])
    alone = take(loader(data, "data.max_bad_share=0.9"), 16)
    shrunk = 0
    for batch in alone:
        assert not set(batch.rows.tolist()) & set(range(0, 32, 4))
        height, width = batch.images.shape[2:]
        for image, mask, row in zip(batch.images, batch.image_mask, batch.rows.tolist(), strict=True):
            h, w = int(mask.any(1).sum()), int(mask.any(0).sum())
            assert (h > w) == (row % 2 == 1) and mask.sum() == h * w and not image[:, ~mask].any()
            if (h, w) not in ((64, 128), (128, 64)):
                shrunk += 1
                assert (h == height or w == width) and abs(max(h, w) - 2 * min(h, w)) <= 1
    assert shrunk
    per_rank = [take(loader(data, "data.max_bad_share=0.9", rank=rank, world=2), 8) for rank in range(2)]
    assert_equal(alone, [batch for together in zip(*per_rank, strict=True) for batch in together])


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("annotated"), "maps", [1] * 7, maps=True, sides=SIDES)


def made(studio: Studio | DeviceStudio, dataset: Dataset, flip: bool) -> tuple[Pictures, list[Job]]:
    rows = RowReader(dataset, frozenset({"boxes", "segmentation"}), 1).read(np.arange(dataset.images))
    frames = FRAMING.frames(np.array([(row.height, row.width) for row in rows]))
    jobs = [
        Job(row, whole(row.height, row.width, (h, w), flip), place, f"row {place}")
        for place, (row, (h, w)) in enumerate(zip(rows, frames.tolist(), strict=True))
    ]
    pictures = studio.blank(len(jobs), FRAMING.canvas(frames))
    assert not any(studio.finish(studio.start(jobs, pictures), pictures))
    studio.close()
    return pictures, jobs


@pytest.mark.parametrize("flip", [False, True])
def test_maps_and_boxes_go_along_with_the_frame(annotated, flip):
    notes = Annotations(TABLE, TABLE)
    pictures, jobs = made(Studio(CPUDecoder(), 0, notes), annotated, flip)
    for place, job in enumerate(jobs):
        (height, width), found = job.crop.frame, pictures.segmentation[place]
        assert (found[height:] == -1).all() and (found[:, width:] == -1).all()
        classes = notes.map_of(job.row, "")
        if classes is None:
            assert (found == -1).all() and not len(pictures.boxes[place][0])
            continue
        for line in range(0, height, 3):
            for column in range(0, width, 3):
                x = width - 1 - column if flip else column
                y, x = int((line + 0.5) * job.row.height / height), int((x + 0.5) * job.row.width / width)
                assert found[line, column] == classes[y, x]
        (small, all_of_it), _, share = pictures.boxes[place]
        left, top, right, bottom = 4, 6, 20, 30
        centre = (left + right) / 2 / job.row.width
        expected = [1 - centre if flip else centre, (top + bottom) / 2 / job.row.height]
        expected += [(right - left) / job.row.width, (bottom - top) / job.row.height]
        assert small.tolist() == pytest.approx(expected, abs=1e-6) and share.tolist() == pytest.approx([1, 1])
        assert all_of_it.tolist() == pytest.approx([0.5, 0.5, 1, 1])


@pytest.mark.parametrize("flip", [False, True])
def test_a_devices_studio_makes_the_same(annotated, flip):
    notes = Annotations(TABLE, TABLE)
    by_cpu, _ = made(Studio(CPUDecoder(), 0, notes), annotated, flip)
    on_device, _ = made(DeviceStudio(FakeDevice(), 0, notes), annotated, flip)
    assert (by_cpu.images - on_device.images).abs().max() < CLOSE
    assert torch.equal(by_cpu.images == 0, on_device.images == 0)
    assert torch.equal(by_cpu.segmentation, on_device.segmentation)
    for one, other in zip(by_cpu.boxes, on_device.boxes, strict=True):
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    captions = real("coco_mini", "annotations", "captions_val2017.json")
    reader = coco.read(captions, real("coco_mini", "val2017"))
    path: Path = tmp_path_factory.mktemp("photographs") / "mini.beton"
    write(reader, path, Options(processes=1, progress=False))
    dataset = Dataset.open(path)
    return dataset, make_tokenizer([dataset])


def test_real_photographs_come_alike_from_the_cpu_and_a_device(photographs):
    dataset, _ = photographs
    settings = (
        "model.image_size=160",
        "model.longest_side=266",
        "data.captions_per_image=5",
        "batch.global_pairs=80",
        "batch.micro_pairs=40",
        "data.bucket_window=4",
    )
    framing, shapes, cells, own = Framing(160, 266), set(), 0, 0
    pair = [loader(photographs, *settings, decoder=decoder) for decoder in (CPUDecoder(), FakeDevice())]
    for one, other in zip(*(take(each, 12) for each in pair), strict=True):
        # Large ones are decoded at half their size on the CPU: edges differ, the picture does not.
        assert (one.images - other.images).abs().flatten(1).mean(1).max() < 2 * CLOSE
        assert_equal([replace(one, images=other.images)], [other])
        frames = framing.frames(dataset.sizes(one.rows.numpy()))
        assert torch.equal(one.image_mask.flatten(1).sum(1), torch.from_numpy(frames.prod(1)))
        shapes.add(tuple(one.images.shape[2:]))
        cells, own = cells + one.image_mask.numel(), own + int(one.image_mask.sum())
    assert len(shapes) <= 6 and own > 0.7 * cells
