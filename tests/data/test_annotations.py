import numpy as np

from dsvlp.data.annotations import padded_boxes


def test_boxes_that_the_crop_took_lose_their_class():
    entry = np.zeros((3, 4), np.float32), np.array([4, 5, 6]), np.array([1.0, 0.4, 0.0])
    _, classes = padded_boxes([entry, None], keep_area=0.5)
    assert classes.tolist() == [[4, -1, -1], [-1, -1, -1]]
    assert padded_boxes([entry], keep_area=0.0)[1].tolist() == [[4, 5, -1]]
    assert padded_boxes([None], keep_area=0.0)[0].shape == (1, 1, 4)
