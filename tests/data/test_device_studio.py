import logging
from collections import deque
from dataclasses import fields, replace
from io import BytesIO

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from dsvlp.data import device_studio
from dsvlp.data.annotations import Annotations
from dsvlp.data.augment import whole
from dsvlp.data.decode import BadImage, CPUDecoder
from dsvlp.data.device_studio import DeviceStudio
from dsvlp.data.fetch import Fetcher
from dsvlp.data.loader import Loader
from dsvlp.data.pictures import Job, Pictures, Studio
from dsvlp.data.rows import StoredRow
from dsvlp.errors import DataError, RunError
from dsvlp.types import Batch
from tests.data.fake_device import FakeDevice
from tests.data.pictures_of_noise import (
    TABLE,
    damage,
    jpeg,
    make_dataset,
    make_loader,
    make_recipe,
    make_tokenizer,
)
from tests.data.raw_files import encoded

S, NOTHING = 32, Annotations(None, None)
CLOSE = 0.04  # of normalised pixels, two of 255 levels: the CPU rounds to whole levels between its steps
ANNOTATED = ("objectives.segl.weight=1.0", "model.visual_queries=4", "objectives.spl.weight=1.0")


def stored(data: bytes, height: int = 48, width: int = 64) -> StoredRow:
    no_boxes = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    return StoredRow(np.frombuffer(data, np.uint8), height, width, *no_boxes, np.zeros(0, np.uint8))


def jobs_of(files: list[bytes]) -> list[Job]:
    return [Job(stored(data), whole(48, 64, (S, S)), n, f"picture {n}") for n, data in enumerate(files)]


def develop(studio: DeviceStudio | Studio, files: list[bytes]) -> tuple[Pictures, list[BadImage | None]]:
    pictures = studio.blank(len(files), (S, S))
    faults = studio.finish(studio.start(jobs_of(files), pictures), pictures)
    studio.close()
    return pictures, faults


def device(decoder: FakeDevice | None = None, workers: int = 0) -> DeviceStudio:
    return DeviceStudio(decoder or FakeDevice(), workers, NOTHING)


GOOD = [jpeg(n, 48, 64) for n in range(6)]
CMYK = encoded(Image.open(BytesIO(GOOD[0])).convert("CMYK"))
PROGRESSIVE = encoded(Image.open(BytesIO(GOOD[1])), quality=95, progressive=True)
TORN = GOOD[2][: len(GOOD[2]) // 2]
END = GOOD[3].index(b"\xff\xda") + 30
ERASED = GOOD[3][:END] + bytes(len(GOOD[3]) - END - 2) + b"\xff\xd9"  # whole by its markers


@pytest.mark.parametrize("workers", [0, 2])
def test_progressive_cmyk_and_damaged_jpegs_harm_no_other_image_of_their_batch(workers):
    files = [GOOD[0], CMYK, GOOD[1], PROGRESSIVE, TORN, GOOD[2], ERASED, GOOD[3], b"garbage", GOOD[4]]
    pictures, faults = develop(device(workers=workers), files)
    alone, _ = develop(device(), GOOD[:5])
    assert [n for n, fault in enumerate(faults) if fault is not None] == [4, 6, 8]
    assert torch.equal(pictures.images[[0, 2, 5, 7, 9]], alone.images)
    by_cpu, cpu_faults = develop(Studio(CPUDecoder(), 0, NOTHING), files)
    assert faults == cpu_faults  # the same images are bad, for the same reasons
    assert (pictures.images - by_cpu.images)[[0, 1, 2, 3, 5, 7, 9]].abs().max() < CLOSE


def test_a_list_that_fails_is_halved_until_the_bad_one_is_alone(caplog):
    decoder = FakeDevice()
    studio = device(decoder)
    pictures, faults = develop(studio, [*GOOD[:3], ERASED, *GOOD[3:], GOOD[0]])
    assert decoder.calls == [8, 4, 2, 2, 1, 1, 4]
    assert [n for n, fault in enumerate(faults) if fault] == [3] and studio.refused == 1
    assert [r.message for r in caplog.records if "picture 3" in r.message]
    assert torch.equal(pictures.images[0], pictures.images[7])


class Choosy(FakeDevice):
    """Answers for each image alone: None, or a picture of another size, for some."""

    def decode(self, jpegs):
        found = super().decode(jpegs)
        return [None, found[1][:, ::2], *found[2:]]


def test_what_the_device_does_not_decode_the_cpu_does():
    studio = device(Choosy())
    pictures, faults = develop(studio, GOOD)
    assert not any(faults) and studio.refused == 2
    by_cpu, _ = develop(Studio(CPUDecoder(), 0, NOTHING), GOOD)
    assert (pictures.images - by_cpu.images).abs().max() < CLOSE


def test_the_lane_is_settled_before_every_decode_and_the_device_after_one_that_failed(monkeypatch):
    decoder, order = FakeDevice(), []
    studio = device(decoder)
    monkeypatch.setattr(studio.lane, "settle", lambda: order.append("settle"))
    monkeypatch.setattr(studio.lane, "settle_device", lambda: order.append("settle device"))
    decode = decoder.decode
    monkeypatch.setattr(decoder, "decode", lambda jpegs: (order.append("decode"), decode(jpegs))[1])
    develop(studio, [GOOD[0], ERASED])
    once = ["settle", "decode"]
    assert order == [*once, "settle device", *once, *once, "settle device"]


def test_many_pixels_are_decoded_in_several_calls_with_the_same_result(monkeypatch):
    together, _ = develop(device(), GOOD)
    monkeypatch.setattr(device_studio, "_PIXELS_AT_ONCE", 2 * 48 * 64)
    decoder = FakeDevice()
    pictures, faults = develop(device(decoder), GOOD)
    assert decoder.calls == [2, 2, 2] and not any(faults)
    assert torch.equal(pictures.images, together.images)


def test_an_image_larger_than_the_buffers_is_decoded_on_the_cpu(monkeypatch):
    monkeypatch.setattr(device_studio, "_PIXELS_AT_ONCE", 48 * 64 - 1)
    decoder = FakeDevice()
    pictures, faults = develop(device(decoder), GOOD[:1])
    assert decoder.calls == [] and faults == [None] and pictures.images.any()


def test_an_image_larger_than_its_row_says_is_named_before_it_is_decoded():
    huge = bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    frame = huge.index(b"\xff\xc0")
    huge[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"  # 65,500 x 65,500 pixels: 12.9 GB
    decoder = FakeDevice()
    _, (fault,) = develop(device(decoder), [bytes(huge)])
    assert fault is not None and "65500 x 65500 pixels, its row says 64 x 48" in fault.reason
    assert decoder.calls == []


class Full(FakeDevice):
    def decode(self, jpegs):
        raise RuntimeError("Error while decoding JPEG images: CUDA out of memory. Tried to allocate 768 MiB")


def test_a_full_memory_is_no_bad_image():
    with pytest.raises(RunError, match=r"6 JPEGs: the GPU's memory is full.*batch\.micro_pairs"):
        develop(device(Full()), GOOD)


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    dataset = make_dataset(tmp_path_factory.mktemp("device"), "noise", [1, 2, 3, 4, 5] * 3, 4, maps=True)
    return dataset, make_tokenizer([dataset])


def take(loader: Loader, count: int) -> list[Batch]:
    with loader:
        return [next(loader) for _ in range(count)]


def assert_close(one: Batch, other: Batch) -> None:
    assert (one.images - other.images).abs().max() < CLOSE
    for field in fields(Batch):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name != "images" and theirs is not None:
            assert torch.equal(mine, theirs), field.name


@pytest.mark.parametrize("split", ["train", "evaluate"])
def test_the_loader_gives_the_same_batches_with_maps_and_boxes_equal_to_the_last_bit(noise, split):
    dataset, tokenizer = noise
    loaders = [
        make_loader([dataset], tokenizer, *ANNOTATED, split=split, decoder=decoder)
        for decoder in (FakeDevice(), CPUDecoder())
    ]
    for one, other in zip(*(take(loader, 12) for loader in loaders), strict=True):
        assert_close(one, other)
        assert one.segmentation is not None and one.box_labels is not None


def test_a_consumer_that_lags_behind_finds_every_one_of_200_batches_intact(noise):
    dataset, tokenizer = noise
    held: deque[tuple[Batch, Batch]] = deque()
    settings = (*ANNOTATED, "data.prefetch=4")
    with (
        make_loader([dataset], tokenizer, *settings, decoder=FakeDevice()) as loader,
        make_loader([dataset], tokenizer, *settings) as by_cpu,
    ):
        for _ in range(200):
            batch = next(loader)
            held.append((batch, replace(batch, images=batch.images.clone())))
            if len(held) == 7:
                late, early = held.popleft()
                assert torch.equal(late.images, early.images)
                assert_close(late, next(by_cpu))


def test_damage_below_the_writer_is_met_alike(tmp_path, caplog):
    dataset = make_dataset(tmp_path, "bad", [2] * 12)
    for row in (3, 7):
        damage(dataset, row, b"\xff\xd8\xff\xd9")
    tokenizer, seen = make_tokenizer([dataset]), []
    for decoder in (FakeDevice(), CPUDecoder()):
        with (
            caplog.at_level(logging.WARNING),
            make_loader(
                [dataset], tokenizer, "data.max_bad_share=0.9", "data.prefetch=1", decoder=decoder
            ) as loader,
        ):
            seen.append([next(loader).rows.tolist() for _ in range(12)])
            assert loader.bad.total >= 4 and set(loader.bad.reasons)
    assert seen[0] == seen[1] and not {3, 7} & {row for batch in seen[0] for row in batch}
    assert "bad image bad.beton/0003.jpg" in caplog.text
    with make_loader(
        [dataset], tokenizer, "data.max_bad_share=0.9", split="evaluate", decoder=FakeDevice()
    ) as loader:
        for batch in loader:
            worthless = batch.weight.view(len(batch.rows), -1)[:, 0] == 0
            assert not batch.images[worthless].any() and batch.images[~worthless].flatten(1).any(1).all()


def test_too_many_bad_images_stop_the_run(tmp_path):
    dataset = make_dataset(tmp_path, "bad", [1] * 12)
    damage(dataset, 3, b"garbage")
    loader = make_loader(
        [dataset], make_tokenizer([dataset]), "data.max_bad_share=0.01", decoder=FakeDevice()
    )
    with pytest.raises(DataError, match=r"1 images cannot be read, the last is bad\.beton/0003\.jpg"):
        take(loader, 12)


def test_a_label_that_no_table_knows_names_file_and_value():
    narrow = Annotations(replace(TABLE, ids=TABLE.ids[:2], names=TABLE.names[:2]), None)
    studio = DeviceStudio(FakeDevice(), 0, narrow)
    row = replace(
        stored(GOOD[0]), map_png=np.frombuffer(encoded(np.full((48, 64), 9, np.uint8), "PNG"), np.uint8)
    )
    pictures = studio.blank(1, (S, S))
    with pytest.raises(DataError, match=r"noise/1 has the segmentation label 9"):
        studio.finish(studio.start([Job(row, whole(48, 64, (S, S)), 0, "noise/1")], pictures), pictures)


def test_a_resume_within_a_backend_is_bit_for_bit_and_its_name_is_state(noise):
    dataset, tokenizer = noise
    through = take(make_loader([dataset], tokenizer, decoder=FakeDevice()), 18)
    with make_loader([dataset], tokenizer, decoder=FakeDevice()) as loader:
        for _ in range(6):
            next(loader)
        state = loader.state_dict()
    assert state["decoder"] == "fake 1.0"
    again = make_loader([dataset], tokenizer, "data.workers=0", decoder=FakeDevice())
    again.load_state_dict(state)
    for one, other in zip(through[6:], take(again, 12), strict=True):
        assert torch.equal(one.images, other.images)


def test_fetched_negatives_come_through_the_same_backend(noise):
    dataset, tokenizer = noise
    samples, nothing, found = torch.tensor([[3, 4], [-1, 5], [7, -1]]), torch.full((2, 2), -1), []
    for decoder in (FakeDevice(), CPUDecoder()):
        with Fetcher(make_recipe(), [dataset], tokenizer, 1, decoder=decoder) as fetcher:
            fetcher.ask(5, 0, lambda: samples)
            fetcher.ask(6, 0, lambda: nothing)
            found.append(fetcher.take())
            assert not fetcher.take().images.any()
    one, other = found
    assert (one.images - other.images).abs().max() < CLOSE and not one.images[1].any()
    assert torch.equal(one.rows, other.rows) and torch.equal(one.text_ids, other.text_ids)
