"""Our FFCV fields, read through FFCV's own loader."""

from pathlib import Path

import numpy as np
import torch
from ffcv.loader import Loader, OrderOption

from dsvlp.data import check
from dsvlp.data.dataset import Dataset
from dsvlp.data.fields import ROW, ImagePointer, RaggedPointer
from dsvlp.data.writer import Options, write
from tests.data.raw_files import make_pictures, reader


def test_ffcvs_loader_yields_pointers_to_the_stored_bytes(tmp_path: Path) -> None:
    write(reader(make_pictures(tmp_path / "p", 11)), tmp_path / "a.beton", Options(1, progress=False))
    dataset = Dataset.open(tmp_path / "a.beton")
    right = list(check.rows(dataset))
    path = dataset.shards[0].path
    data = np.memmap(path, np.uint8, "r")
    threads = torch.get_num_threads()
    pipelines = {name: [ImagePointer() if name == "image" else RaggedPointer()] for name in ROW}
    loader = Loader(
        str(path),
        batch_size=4,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        custom_fields=ROW,
        pipelines=pipelines,
    )
    row = 0
    for image, boxes, labels, png in loader:
        for k in range(len(image)):
            offset, size, height, width = image[k].tolist()
            values = [data[o : o + s].tobytes() for o, s in (p[k].tolist() for p in (boxes, labels, png))]
            stored = right[row]
            assert data[offset : offset + size].tobytes() == stored.jpeg
            assert (height, width) == (stored.height, stored.width)
            assert values == [stored.boxes_xyxy.tobytes(), stored.box_labels.tobytes(), stored.map_png]
            row += 1
    assert row == 11
    torch.set_num_threads(threads)
