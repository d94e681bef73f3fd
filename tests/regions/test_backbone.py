"""The CNN that gives the features: sizes of pictures, its map, and what is refused."""

import dsvlp.vision  # noqa: F401  # isort: skip
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from dsvlp.errors import DataError
from dsvlp.regions.backbone import Backbone, Sizes
from tests.data.raw_files import real

CPU = torch.device("cpu")
SMALL = Sizes(64, 96)


def shown(seed: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(480, 640, (608, 800)), (640, 480, (800, 608)), (100, 900, (96, 992)), (2000, 2000, (608, 608))],
)
def test_sides_are_whole_cells_near_the_sizes_of_bottom_up_features(height, width, expected):
    assert Sizes(600, 1000).of(height, width) == expected


@pytest.mark.parametrize("drawn", [True, False], ids=["drawn weights", "a file's"])
def test_a_map_has_a_cell_for_32_pixels_and_comes_to_its_own_picture(tmp_path, drawn):
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "w.safetensors")
    backbone = Backbone("resnet18", "random" if drawn else str(tmp_path / "w.safetensors"), SMALL, CPU)
    assert backbone.width == 512
    pictures = [shown(0, 50, 70), shown(1, 70, 50), shown(2, 50, 70)]
    maps = {
        place: found
        for places, group in backbone.maps(pictures)
        for place, found in zip(places, group, strict=True)
    }
    assert {place: tuple(found.shape) for place, found in maps.items()} == {
        0: (512, 2, 3),
        1: (512, 3, 2),
        2: (512, 2, 3),
    }
    for place, picture in enumerate(pictures):
        ((_, alone),) = backbone.maps([picture])
        torch.testing.assert_close(maps[place], alone[0], rtol=1e-4, atol=1e-5)


def test_it_is_timms_network_with_the_weights_of_a_file(tmp_path):
    theirs = timm.create_model("resnet18", pretrained=False).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    backbone = Backbone("resnet18", str(tmp_path / "w.safetensors"), SMALL, CPU)
    picture = shown(0, 64, 96)
    ((_, maps),) = backbone.maps([picture])
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        expected = theirs.forward_features(((picture / 255 - mean) / deviation)[None])
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-4)


def test_random_weights_are_the_same_each_time():
    one, other = (Backbone("resnet18", "random", SMALL, CPU) for _ in range(2))
    ((_, a),), ((_, b),) = (network.maps([shown(0, 64, 64)]) for network in (one, other))
    assert torch.equal(a, b)


def test_random_weights_tell_pictures_apart_by_their_mean_too():
    """Of photographs: a ResNet-50's cells are as alike as 0.5, their means' variance a tenth of the whole."""
    backbone = Backbone("resnet50", "random", Sizes(96, 128), CPU)
    files = sorted(real("coco_mini", "val2017").glob("*.jpg"))[:12]
    pictures = [
        torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) for file in files
    ]
    cells = [found.flatten(1).T for _, group in backbone.maps(pictures) for found in group]  # [h w, C] each
    every, means = torch.cat(cells), torch.stack([of.mean(0) for of in cells])
    assert 0.1 < float(every.abs().mean()) < 10
    alike = torch.cosine_similarity(every[:, None, ::16], every[None, :, ::16], dim=2).mean()
    assert float(alike) < 0.7
    assert float(means.var(0).sum() / every.var(0).sum()) > 0.04


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("resnet999", "random", "no model of this name"),
        ("vit_tiny_patch16_224", "random", "stride 32"),
        ("resnet18", "nowhere.safetensors", "neither a file nor a model"),
    ],
)
def test_what_does_not_serve_is_refused_by_its_option(name, weights, said):
    with pytest.raises(DataError, match=f"--backbone {name}.*{said}"):
        Backbone(name, weights, SMALL, CPU)
