"""`dsvlp bench decode`: every backend that works here, at both works; the others say why not."""

import pytest
import torch

from dsvlp.data import bench_decode, bench_loader
from dsvlp.data.bench_decode import Setting
from dsvlp.data.dataset import Dataset
from dsvlp.data.decoders.open import BACKENDS
from dsvlp.errors import DataError
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
