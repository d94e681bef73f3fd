"""What only a GPU can show. Every test here runs once for each backend whose library is installed."""

import pytest
import torch

from dsvlp.data.annotations import Annotations
from dsvlp.data.decode import CPUDecoder, DeviceDecoder
from dsvlp.data.decoders.open import BACKENDS, open_decoder, why_no_gpu
from dsvlp.data.device_studio import DeviceStudio
from dsvlp.data.lane import Lane
from dsvlp.data.pictures import Studio
from dsvlp.data.place import place_images, place_maps
from dsvlp.errors import MissingDependency
from tests.data.pictures_of_noise import make_dataset, make_loader, make_tokenizer
from tests.data.test_device_studio import CMYK, ERASED, GOOD, PROGRESSIVE, TORN, S, develop
from tests.data.test_place import drawn, on_device, pictures

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason=f"no GPU: {why_no_gpu()}"),
]
MEAN = 0.03  # of normalised pixels: chroma is enlarged and the cosine transform rounded in other ways
LARGE = ("model.image_size=224", "batch.micro_pairs=16", "batch.global_pairs=64", "data.prefetch=4")


@pytest.fixture(params=BACKENDS)
def decoder(request) -> DeviceDecoder:
    try:
        return open_decoder(request.param, torch.device("cuda", 0))  # type: ignore[return-value]
    except MissingDependency as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Pictures of the usual sizes, with maps and boxes."""
    sides = ((480, 640), (375, 500), (640, 480))
    dataset = make_dataset(tmp_path_factory.mktemp("gpu"), "photographs", [1] * 96, maps=True, sides=sides)
    return dataset, make_tokenizer([dataset])


def mean_difference(images: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Returns the largest of the images' mean differences, on the images' device."""
    return (images - expected).abs().flatten(1).mean(1).max()


def test_a_stalled_consumer_finds_200_batches_as_the_cpu_decodes_them(decoder, photographs):
    dataset, tokenizer = photographs
    with make_loader([dataset], tokenizer, *LARGE) as loader:
        expected = [next(loader).images.to("cuda").half() for _ in range(200)]
    torch.cuda.synchronize()
    consumer, differences = torch.cuda.Stream(), []
    with make_loader([dataset], tokenizer, *LARGE, decoder=decoder) as loader, torch.cuda.stream(consumer):
        for right in expected:
            batch = next(loader)
            torch.cuda._sleep(20_000_000)  # some 10 ms, in which the host goes on to the next batches
            differences.append(mean_difference(batch.images, right))
            del batch
    torch.cuda.synchronize()
    assert max(float(difference) for difference in differences) < MEAN


def test_progressive_cmyk_and_damaged_jpegs_harm_no_other_image_of_their_batch(decoder):
    files = [GOOD[0], CMYK, GOOD[1], PROGRESSIVE, TORN, GOOD[2], ERASED, GOOD[3], b"garbage", GOOD[4]]
    nothing = Annotations(None, None)
    for _ in range(20):
        batch, faults = develop(DeviceStudio(decoder, 2, nothing), files)
        alone, _ = develop(DeviceStudio(decoder, 2, nothing), GOOD[:5])
        torch.cuda.synchronize()
        # ERASED is whole by its markers: an engine may take it for a picture, but never harm another by it.
        assert [n for n, fault in enumerate(faults) if fault is not None and n != 6] == [4, 8]
        assert torch.equal(batch.images[[0, 2, 5, 7, 9]], alone.images)
    by_cpu, _ = develop(Studio(CPUDecoder(), 0, nothing), files)
    kept = [0, 1, 2, 3, 5, 7, 9]
    assert mean_difference(batch.images[kept].cpu(), by_cpu.images[kept]) < MEAN


def test_images_and_maps_arrive_on_the_gpu_and_are_not_copied_again(decoder, photographs):
    dataset, tokenizer = photographs
    wanted = (*LARGE, "objectives.segl.weight=1.0")
    with make_loader([dataset], tokenizer, *wanted, decoder=decoder) as loader:
        batch = next(loader)
    moved = batch.to(torch.device("cuda", 0))
    assert batch.images.is_cuda and moved.images.data_ptr() == batch.images.data_ptr()
    assert batch.segmentation.is_cuda and moved.segmentation.data_ptr() == batch.segmentation.data_ptr()
    assert batch.text_ids.is_pinned() and moved.text_ids.is_cuda


def test_the_cpus_decoder_leaves_its_batches_in_pinned_memory(photographs):
    dataset, tokenizer = photographs
    with make_loader([dataset], tokenizer, *LARGE) as loader:
        batch = next(loader)
    assert batch.images.is_pinned() and batch.text_ids.is_pinned() and batch.rows.is_pinned()


def test_within_a_backend_the_same_pixels_come_again(decoder, photographs):
    dataset, tokenizer = photographs
    runs = []
    for workers in (1, 3):
        with make_loader([dataset], tokenizer, *LARGE, f"data.workers={workers}", decoder=decoder) as loader:
            runs.append([next(loader).images.clone() for _ in range(12)])
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_placing_is_the_same_on_both_devices():
    sources, crops, lane = pictures(24), drawn(24), Lane(torch.device("cuda", 0))
    full = [each.shape[:2] for each in sources]
    on_cpu = place_images(on_device(sources), crops, full, (S, S), Lane(torch.device("cpu")))
    on_gpu = place_images([each.cuda() for each in on_device(sources)], crops, full, (S, S), lane)
    assert (on_gpu.cpu() - on_cpu).abs().max() < 1e-4
    maps = [each[..., 0].astype("int32") for each in sources]
    assert torch.equal(
        place_maps(maps, crops, (S, S), lane).cpu(),
        place_maps(maps, crops, (S, S), Lane(torch.device("cpu"))),
    )
