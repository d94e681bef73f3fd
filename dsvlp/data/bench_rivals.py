"""What the loader is measured against: torch's DataLoader with Pillow, and with simplejpeg.

Both do the loader's image work as a user of torchvision would write it: the same crops of the same
JPEGs, resized to S x S by an antialiased bilinear filter, flipped, normalised, collated to float32
[B, 3, S, S]. They need not read texts or annotations.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

import dsvlp.vision  # noqa: F401  torchvision may need its shim
from dsvlp.data.augment import Crop, draw_crops
from dsvlp.types import IMAGENET_DEVIATION, IMAGENET_MEAN

from torchvision.transforms import functional as pil_ops  # isort: skip
from torchvision.transforms.v2 import functional as tensor_ops  # isort: skip


class JPEGFolder(Dataset):
    """JPEG files decoded, augmented and normalised one by one.

    Args:
        paths: the files.
        size: S.
        make: (JPEG, S) -> float32 [3, S, S].
    """

    def __init__(self, paths: list[Path], size: int, make: Callable[[bytes, int], Tensor]) -> None:
        self._paths, self._size, self._make = paths, size, make

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        return self._make(self._paths[index].read_bytes(), self._size)


def batches(contestant: str, paths: list[Path], size: int, batch: int, workers: int) -> Iterator[Tensor]:
    """Returns endless batches of a rival, "pillow" or "simplejpeg"."""
    dataset = JPEGFolder(paths, size, {"pillow": by_pillow, "simplejpeg": by_simplejpeg}[contestant])
    sampler = RandomSampler(dataset, replacement=True, num_samples=1 << 40)
    return iter(DataLoader(dataset, batch, sampler=sampler, num_workers=workers, drop_last=True))


def by_pillow(jpeg: bytes, size: int) -> Tensor:
    """Returns the image by Pillow and torchvision's functions for PIL images."""
    with Image.open(io.BytesIO(jpeg)) as opened:
        image = opened.convert("RGB")
    crop = _crop(image.height, image.width, size)
    target = [crop.target_height, crop.target_width]
    image = pil_ops.resized_crop(image, crop.top, crop.left, crop.height, crop.width, target)
    if target != [size, size]:
        canvas = Image.new("RGB", (size, size), tuple(round(255 * mean) for mean in IMAGENET_MEAN))
        canvas.paste(image, (crop.target_left, crop.target_top))
        image = canvas
    if crop.flip:
        image = pil_ops.hflip(image)
    return pil_ops.normalize(pil_ops.to_tensor(image), IMAGENET_MEAN, IMAGENET_DEVIATION, inplace=True)


def by_simplejpeg(jpeg: bytes, size: int) -> Tensor:
    """Returns the image by simplejpeg and torchvision's functions for uint8 tensors."""
    image = torch.from_numpy(simplejpeg.decode_jpeg(jpeg)).permute(2, 0, 1)
    crop = _crop(image.shape[1], image.shape[2], size)
    target = [crop.target_height, crop.target_width]
    image = tensor_ops.resized_crop(
        image, crop.top, crop.left, crop.height, crop.width, target, antialias=True
    )
    if crop.flip:
        image = tensor_ops.horizontal_flip(image)
    image = tensor_ops.normalize(
        tensor_ops.to_dtype(image, torch.float32, scale=True), IMAGENET_MEAN, IMAGENET_DEVIATION, True
    )
    if target == [size, size]:
        return image
    left = size - crop.target_left - crop.target_width if crop.flip else crop.target_left
    right, bottom = size - left - crop.target_width, size - crop.target_top - crop.target_height
    return tensor_ops.pad(image, [left, crop.target_top, right, bottom])


def _crop(height: int, width: int, size: int) -> Crop:
    key = torch.randint(1 << 62, (1,)).numpy()
    return draw_crops(key, np.array([height]), np.array([width]), np.array([True]), size, (0.8, 1.2))[0]
