import numpy as np
import pytest
import torch

from dsvlp.data.augment import whole
from dsvlp.data.decode import BadImage, CPUDecoder
from dsvlp.data.pictures import Job, Studio, padded_boxes, single_threaded_pool
from dsvlp.data.rows import StoredRow
from tests.data.pictures_of_noise import TABLE, jpeg, png


def stored(map_png: bytes) -> StoredRow:
    return StoredRow(
        np.frombuffer(jpeg(0, 16, 16), np.uint8),
        16,
        16,
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int32),
        np.frombuffer(map_png, np.uint8),
    )


@pytest.mark.parametrize(
    "damaged",
    [b"no picture", png(np.random.default_rng(0).choice([2, 5], (16, 16)))[:70], png(np.full((8, 16), 2))],
    ids=["text", "cut", "other size"],
)
def test_a_damaged_map_makes_the_image_bad_and_leaves_no_label(damaged):
    studio = Studio(CPUDecoder(), 8, workers=0, segmentation=TABLE)
    pictures = studio.blank(1)
    fault = studio.start(Job(stored(damaged), whole(16, 16, 8), 0, "x"), pictures).result()
    assert isinstance(fault, BadImage) and "map" in fault.reason
    assert (pictures.segmentation == -1).all()


def test_stored_ids_become_contiguous_classes_and_the_unlabelled_id_is_ignored():
    studio = Studio(CPUDecoder(), 4, workers=0, segmentation=TABLE)
    pictures = studio.blank(1)
    ids = np.repeat(np.array([[0], [2], [5], [9]]), 4, axis=1).repeat(4, 0).repeat(4, 1)
    assert studio.make(Job(stored(png(ids)), whole(16, 16, 4), 0, "x"), pictures) is None
    assert pictures.segmentation[0, :, 0].tolist() == [-1, 0, 1, 2]


def test_boxes_that_the_crop_took_lose_their_class():
    entry = np.zeros((3, 4), np.float32), np.array([4, 5, 6]), np.array([1.0, 0.4, 0.0])
    _, classes = padded_boxes([entry, None], keep_area=0.5)
    assert classes.tolist() == [[4, -1, -1], [-1, -1, -1]]
    assert padded_boxes([entry], keep_area=0.0)[1].tolist() == [[4, 5, -1]]
    assert padded_boxes([None], keep_area=0.0)[0].shape == (1, 1, 4)


def test_a_pools_threads_run_torch_alone_and_others_keep_their_count():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with single_threaded_pool(2) as pool:
        assert {pool.submit(torch.get_num_threads).result(10) for _ in range(8)} == {1}
        assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
