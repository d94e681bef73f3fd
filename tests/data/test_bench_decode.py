"""`dsvlp bench decode`: every backend that works here, at both works; the others say why not."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from dsvlp.data import bench_decode, bench_loader
from dsvlp.data.bench_decode import Setting
from dsvlp.data.dataset import Dataset
from dsvlp.data.decoders.open import BACKENDS
from dsvlp.data.lane import Lane
from dsvlp.errors import DataError
from tests.data.fake_device import FakeDevice
from tests.data.pictures_of_noise import jpeg


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decode")
    (folder / "photographs").mkdir()
    (folder / "photographs" / "a.jpg").write_bytes(jpeg(0, 60, 80))
    made = bench_loader.prepare(folder / "photographs", folder, 7, ((640, 480),))
    return Dataset.open(made, verify="quick")


def test_the_cpus_backend_is_measured_on_full_micro_batches_of_the_asked_size(dataset):
    setting = Setting(images=7, size=64, batch=3, workers=1, seconds=0.0)
    jobs = bench_decode.batches(dataset, setting)
    assert [len(batch) for batch in jobs] == [3, 3]
    assert {(job.row.width, job.row.height) for batch in jobs for job in batch} == {(640, 480)}
    working, absent = bench_decode.backends(torch.device("cpu"))
    assert set(working) == {"cpu"} and set(absent) == set(BACKENDS)
    for work in bench_decode.WORKS:
        rate = bench_decode.measure(working["cpu"], work, jobs, setting)
        assert rate.images == 3 and rate.images_per_second > 0 and rate.images_per_cpu_second > 0


def test_too_few_images_for_a_micro_batch_are_named(dataset):
    with pytest.raises(DataError, match="has 7 images"):
        bench_decode.batches(dataset, Setting(images=512, size=64, batch=8, workers=0, seconds=0.0))


class Watched(Lane):
    """A lane that notes what is done with it."""

    seen: list[str] = []

    @contextmanager
    def open(self) -> Iterator[None]:
        self.seen.append("open")
        with super().open():
            yield
        self.seen.append("close")

    def settle(self) -> None:
        self.seen.append("settle")


class Noted(FakeDevice):
    def decode(self, jpegs):
        Watched.seen.append("decode")
        return super().decode(jpegs)


def test_a_devices_backend_is_measured_on_a_lane_that_settles_before_each_call(dataset, monkeypatch):
    setting = Setting(images=6, size=64, batch=3, workers=1, seconds=0.0)
    jobs = bench_decode.batches(dataset, setting)
    monkeypatch.setattr(bench_decode, "Lane", Watched)
    monkeypatch.setattr(Watched, "seen", [])
    assert bench_decode.measure(Noted(), "decode", jobs, setting).images == 3
    assert Watched.seen == ["open", "settle", "decode", "close"] * 3  # two warm up
    assert bench_decode.measure(Noted(), "pixels", jobs, setting).images == 3


def test_a_backend_that_refuses_an_image_has_no_rate(dataset):
    class Refusing(FakeDevice):
        def decode(self, jpegs):
            return [*super().decode(jpegs)[:-1], None]

    setting = Setting(images=6, size=64, batch=3, workers=1, seconds=0.0)
    with pytest.raises(DataError, match=r"image 2: fake 1\.0 refuses it"):
        bench_decode.measure(Refusing(), "decode", bench_decode.batches(dataset, setting), setting)
