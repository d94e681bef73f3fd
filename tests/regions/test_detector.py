"""A detector's queries as objects: which, in what order, and what is refused."""

import shutil

import numpy as np
import pytest
import torch

from dsvlp.data.rows import StoredRow
from dsvlp.errors import DataError
from dsvlp.regions.detector import Detector, corners, likeliest
from tests.data.raw_files import pixels
from tests.regions.pictures import CLASSES, random_detr

CPU = torch.device("cpu")
NOTHING = np.zeros(0, np.uint8)
ROW = StoredRow(NOTHING, 1, 1, np.zeros((0, 4), "<f4"), np.zeros(0, "<i4"), NOTHING)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_detr(tmp_path_factory.mktemp("detr") / "tiny")


@pytest.fixture(scope="module")
def detector(folder):
    return Detector.load(str(folder), 8, CPU)


def picture(seed: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(pixels(seed, height, width).copy()).permute(2, 0, 1)


def test_objects_are_the_most_confident_queries_of_the_models_own_post_processing(folder, detector):
    """Every query once, by its likeliest class but "no object", as transformers does for DETR."""
    shown = picture(1, 40, 60)
    found = detector.find([shown], [ROW])
    model, processor = detector._model, detector._processor
    with torch.inference_mode():
        given = model(**processor(images=[shown], return_tensors="pt"))
    theirs = processor.post_process_object_detection(given, threshold=0.0, target_sizes=[(1, 1)])[0]
    order = theirs["scores"].argsort(descending=True)[:8]
    torch.testing.assert_close(found.confidences[0], theirs["scores"][order])
    assert found.labels[0].tolist() == theirs["labels"][order].tolist()
    torch.testing.assert_close(found.boxes[0], theirs["boxes"][order].clamp(0, 1))
    assert found.mask.all()


def test_the_label_table_is_the_models(detector):
    assert detector.table.names == CLASSES and detector.table.ids == tuple(range(5))
    assert detector.table.name == "tiny"


def test_pictures_do_not_see_each_other_whatever_their_sizes(detector):
    shown = [picture(k, height, width) for k, (height, width) in enumerate([(40, 60), (64, 32), (40, 60)])]
    together = detector.find(shown, [ROW] * 3)
    for k, one in enumerate(shown):
        alone = detector.find([one], [ROW])
        torch.testing.assert_close(together.boxes[k], alone.boxes[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.confidences[k], alone.confidences[0], rtol=1e-4, atol=1e-5)


def test_boxes_lie_inside_the_picture():
    boxes = corners(torch.tensor([[0.1, 0.5, 0.6, 0.2], [0.9, 0.9, 0.4, 0.4]]))
    torch.testing.assert_close(boxes, torch.tensor([[0, 0.4, 0.4, 0.6], [0.7, 0.7, 1, 1]]))


def test_one_logit_a_class_is_read_by_sigmoid_one_more_by_softmax():
    logits = torch.tensor([[[2.0, -1.0, 3.0]]])
    confidence, label = likeliest(logits, 2, "x")
    assert (label.item(), confidence.item()) == (0, pytest.approx(float(logits.softmax(-1)[0, 0, 0])))
    confidence, label = likeliest(logits, 3, "x")
    assert (label.item(), confidence.item()) == (2, pytest.approx(float(torch.tensor(3.0).sigmoid())))
    with pytest.raises(DataError, match="3 logits a query and names 7 classes"):
        likeliest(logits, 7, "x")


def test_more_objects_than_queries_are_refused_when_it_is_loaded(folder):
    with pytest.raises(DataError, match=r"finds 12 objects in a picture.*Use --objects 12"):
        Detector.load(str(folder), 13, CPU)


def test_a_pickle_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"is the pickle pytorch_model.bin.*safetensors"):
        Detector.load(str(tmp_path / "old"), 8, CPU)


def test_what_is_no_detector_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"there is no folder .*nowhere of a detector.*DETR family"):
        Detector.load(str(tmp_path / "nowhere"), 8, CPU)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="cannot be loaded"):
        Detector.load(str(tmp_path), 8, CPU)
