import numpy as np
import pytest
import torch
from PIL import Image

from dsvlp.data import bench_loader, bench_rivals
from dsvlp.data.augment import place_image
from dsvlp.data.bench_loader import Setting
from tests.data.pictures_of_noise import jpeg


@pytest.mark.parametrize("rival", [bench_rivals.by_pillow, bench_rivals.by_simplejpeg])
def test_rivals_make_the_same_picture_of_the_same_crop(rival):
    data = jpeg(3, 90, 120)
    for seed in range(6):
        torch.manual_seed(seed)
        theirs = rival(data, 64)
        torch.manual_seed(seed)
        crop = bench_rivals._crop(90, 120, 64)
        ours = torch.empty(3, 64, 64)
        import io

        place_image(np.array(Image.open(io.BytesIO(data))), crop, (90, 120), ours)
        assert (theirs - ours).abs().mean() < 0.03
        assert (theirs - ours).abs().max() < 0.5


def test_all_contestants_are_measured_on_the_same_images(tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / "a.jpg").write_bytes(jpeg(0, 60, 80))
    data = bench_loader.prepare(photographs, tmp_path, 8)
    bench_loader.extract(data, tmp_path / "files", 8)
    written = sorted((tmp_path / "files").iterdir())
    assert [Image.open(path).size for path in written[:2]] == [(500, 375), (640, 480)]
    assert [path.read_bytes() for path in written] == [
        p.read_bytes() for p in sorted((tmp_path / "raw").iterdir())
    ]
    busy = (torch.rand(300, 300).inverse()[:4] for _ in range(24))
    assert bench_loader._rate(busy, seconds=1e9).images == 80  # four batches warm up
    setting = Setting(data, tmp_path / "files", 64, 4, (0,), 0.01)
    with bench_loader._loader(setting) as loader:
        assert next(loader).images.shape == (4, 3, 64, 64)
