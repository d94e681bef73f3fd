"""From rows to regions: what is stored is what one would compute picture by picture."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dsvlp.data import check
from dsvlp.data.dataset import Dataset
from dsvlp.data.decode import CPUDecoder, EncodedImage
from dsvlp.data.features.rows import RegionRows
from dsvlp.data.readers.coco import read
from dsvlp.data.writer import Options, write
from dsvlp.errors import DataError, RunError
from dsvlp.regions import extractor
from dsvlp.regions.backbone import Backbone, Sizes
from dsvlp.regions.extractor import Extractor
from dsvlp.regions.objects import GivenBoxes, GridBoxes
from dsvlp.regions.pooling import pooled
from tests.data.raw_files import real
from tests.regions.pictures import small_data

CPU = torch.device("cpu")
IMAGES = 11


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("extractor"), IMAGES)


@pytest.fixture(scope="module")
def backbone():
    return Backbone("resnet18", "random", Sizes(64, 96), CPU)


def rows(dataset, source, backbone, wanted=range(IMAGES), batch=4, workers=0) -> RegionRows:
    with Extractor(dataset, source, backbone, CPU, batch, workers) as made:
        return made.rows(wanted)


def decoded(stored) -> np.ndarray:
    jpeg = np.frombuffer(stored.jpeg, np.uint8)
    whole = EncodedImage(jpeg, stored.height, stored.width, stored.height, stored.width)
    return CPUDecoder().decode([whole])[0]


def test_features_are_those_of_each_picture_alone(dataset, backbone):
    found = rows(dataset, GivenBoxes(dataset, 4), backbone)
    assert found.counts.tolist() == [2 - 2 * (k % 2) for k in range(IMAGES)]
    at = 0
    for stored in check.rows(dataset):
        count = len(stored.boxes_xyxy)
        if not count:
            continue
        picture = torch.from_numpy(decoded(stored)).permute(2, 0, 1)
        ((_, maps),) = backbone.maps([picture])
        boxes = torch.from_numpy(found.boxes_xyxy[at : at + count])
        size = torch.tensor([stored.width, stored.height] * 2)
        expected = pooled(maps, (boxes / size)[None])[0]
        got = torch.from_numpy(found.features[at : at + count]).float()
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-4)
        assert sorted(map(tuple, boxes.tolist())) == sorted(map(tuple, stored.boxes_xyxy.tolist()))
        assert set(found.labels[at : at + count].tolist()) == set(stored.box_labels.tolist()), "stored ids"
        at += count
    assert at == len(found.features) and found.features.dtype == np.float16


def test_batches_and_threads_change_nothing(dataset, backbone):
    source = GridBoxes(4)
    one, other = rows(dataset, source, backbone, batch=1), rows(dataset, source, backbone, batch=5, workers=2)
    np.testing.assert_allclose(one.features, other.features, rtol=1e-2, atol=1e-4)
    np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)
    middle = rows(dataset, source, backbone, range(3, 7))
    np.testing.assert_allclose(middle.features, one.features[12:28], rtol=1e-2, atol=1e-4)


def test_a_picture_that_does_not_decode_is_named(tmp_path: Path, backbone):
    small_data(tmp_path, 3)
    path = tmp_path / "a.beton" / "rows-00000.beton"
    stored = list(check.rows(Dataset.open(tmp_path / "a.beton")))[1]
    data = path.read_bytes()
    at = data.index(stored.jpeg) + len(stored.jpeg) // 2
    path.write_bytes(data[:at] + bytes(40) + data[at + 40 :])
    dataset = Dataset.open(tmp_path / "a.beton", "quick")
    with pytest.raises(DataError, match=r"row 1 \(0001.jpg\).*dsvlp data check"):
        rows(dataset, GridBoxes(4), backbone, range(3))


@pytest.mark.parametrize(("value", "told"), [(float("nan"), "nan"), (float("-inf"), "-inf"), (7e4, "70000")])
def test_a_feature_that_float16_does_not_hold_is_named_where_it_is_made(
    dataset, backbone, monkeypatch, value, told
):
    def poor(maps: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        made = pooled(maps, boxes)
        if len(made) == 2:  # the last two of six, of which the second gets it
            made[1, 2, 5] = value
        return made

    monkeypatch.setattr(extractor, "pooled", poor)
    said = rf"row 5 \(0005.jpg\), object 2: .* a feature of {told}\. .*at most 65504"
    with pytest.raises(DataError, match=said):
        rows(dataset, GridBoxes(4), backbone, range(6))


def test_memory_that_ends_is_a_sentence_that_names_the_batch(dataset, backbone, monkeypatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(extractor, "pooled", full)
    with pytest.raises(RunError, match=r"what 4 pictures need: CUDA out of memory.*smaller --batch than 4"):
        rows(dataset, GridBoxes(4), backbone)


def test_other_errors_of_torch_stay_what_they_are(dataset, backbone, monkeypatch):
    def wrong(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(extractor, "pooled", wrong)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        rows(dataset, GridBoxes(4), backbone)


def test_drawn_features_tell_real_photographs_apart_at_another_size(tmp_path: Path):
    """Without any published weights, a photograph's nearest neighbour is itself, seen smaller."""
    folder = real("coco_mini")
    annotations = folder / "annotations"
    coco = read(
        annotations / "captions_val2017.json", folder / "val2017", annotations / "instances_val2017.json"
    )
    write(coco, tmp_path / "coco.beton", Options(processes=1, progress=False))
    photographs = Dataset.open(tmp_path / "coco.beton")
    seen = []
    for sizes in (Sizes(128, 192), Sizes(96, 160)):
        network = Backbone("resnet18", "random", sizes, CPU)
        features = rows(photographs, GridBoxes(9), network, range(40)).features.astype(np.float32)
        each = features.reshape(40, -1) - features.reshape(40, -1).mean(0)
        seen.append(each / np.linalg.norm(each, axis=1, keepdims=True))
    assert ((seen[0] @ seen[1].T).argmax(1) == np.arange(40)).mean() > 0.5, "chance: 0.025"
    boxed = rows(photographs, GivenBoxes(photographs, 36), network, range(40))
    assert boxed.counts.sum() > 0 and np.isfinite(boxed.features).all()
