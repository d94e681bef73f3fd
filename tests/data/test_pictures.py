import numpy as np
import pytest

from dsvlp.data.annotations import Annotations
from dsvlp.data.augment import whole
from dsvlp.data.decode import BadImage, CPUDecoder
from dsvlp.data.pictures import Job, Studio
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
    studio = Studio(CPUDecoder(), 0, Annotations(TABLE, None))
    pictures = studio.blank(1, (8, 8))
    begun = studio.start([Job(stored(damaged), whole(16, 16, (8, 8)), 0, "x")], pictures)
    (fault,) = studio.finish(begun, pictures)
    assert isinstance(fault, BadImage) and "map" in fault.reason
    assert (pictures.segmentation == -1).all()


def test_stored_ids_become_contiguous_classes_and_the_unlabelled_id_is_ignored():
    studio = Studio(CPUDecoder(), 0, Annotations(TABLE, None))
    pictures = studio.blank(1, (4, 4))
    ids = np.repeat(np.array([[0], [2], [5], [9]]), 4, axis=1).repeat(4, 0).repeat(4, 1)
    begun = studio.start([Job(stored(png(ids)), whole(16, 16, (4, 4)), 0, "x")], pictures)
    assert studio.finish(begun, pictures) == [None]
    assert pictures.segmentation[0, :, 0].tolist() == [-1, 0, 1, 2]
