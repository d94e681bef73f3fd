"""The CNN whose last map gives the features: any of timm's of stride 32 (2048 channels for ResNet-50 on).

Pictures keep their aspect up to whole cells: both sides become multiples of 32 pixels, so that the map's
cells tile the picture exactly and a box's shares of the picture are its shares of the map.

Legend: I images, C channels, h x w cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from dsvlp.errors import DataError, RecipeError
from dsvlp.models.cnn import CNN, STRIDE
from dsvlp.models.pretrained import load_cnn
from dsvlp.recipe import CNN as Table
from dsvlp.regions.alike import alike

RANDOM = "random"
_SEED = 0


@dataclass(frozen=True)
class Sizes:
    """How large pictures are when the CNN sees them, in pixels (bottom-up features: 600 and 1000).

    Attributes:
        shorter: of the shorter side, unless the longer one would pass `longer`.
        longer: most of the longer side.
    """

    shorter: int = 600
    longer: int = 1000

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of a picture, the nearest multiples of 32."""
        scale = min(self.shorter / min(height, width), self.longer / max(height, width))
        lines, columns = (max(1, round(side * scale / STRIDE)) * STRIDE for side in (height, width))
        return lines, columns


class Backbone:
    """A CNN on its device; bfloat16 on a GPU.

    Args:
        name: timm's.
        weights: timm checkpoint, by name or file; None: timm's own for the name; "random": drawn, always
            the same, for trials without any.
        sizes: of the pictures.
        device: where it computes.

    Attributes:
        width: C.

    Raises:
        DataError: timm has no such CNN, its stride is not 32, or the weights do not fit.
    """

    def __init__(self, name: str, weights: str | None, sizes: Sizes, device: torch.device) -> None:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_SEED)
                cnn = CNN(Table(name=name))
            if weights == RANDOM:
                _calibrate(cnn)
            else:
                load_cnn(cnn.body, weights or name)
        except RecipeError as error:  # it speaks of a recipe's keys
            found = error.found.removeprefix(f"model.image.name = {name!r}").removeprefix("model.image.")
            raise DataError(f"--backbone {name}: {found.lstrip(': ')}", error.expected, error.fix) from error
        self._cnn = cnn.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._sizes, self._device, self.width = sizes, device, cnn.width
        config = timm.data.resolve_model_data_config(cnn.body)
        mean, deviation = (torch.tensor(config[key], device=device) * 255 for key in ("mean", "std"))
        self._scale, self._shift = (1 / deviation)[:, None, None], (-mean / deviation)[:, None, None]

    @torch.inference_mode()
    def maps(self, pictures: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor]]:
        """Yields (places, their maps [I, C, h, w]) of pictures uint8 [3, H, W] on the device."""
        sizes = [self._sizes.of(picture.shape[1], picture.shape[2]) for picture in pictures]
        for places in alike(sizes):
            images = torch.cat([self._resized(pictures[place], sizes[place]) for place in places])
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
                maps = self._cnn(images)
            yield places, maps

    def _resized(self, picture: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns a picture as the CNN's input, float32 [1, 3, h, w]."""
        resized = F.interpolate(
            picture[None].float(), size, mode="bilinear", antialias=True, align_corners=False
        )
        return resized * self._scale + self._shift


def _calibrate(cnn: CNN) -> None:
    """Gives drawn weights the BatchNorm statistics that they lack: those of drawn pictures.

    As timm draws a ResNet-50, its statistics are none and its residual branches zero: all photographs have
    nearly the same features. Normalised each by itself they differ from cell to cell, and hardly in their
    means: 0.8% of the variance of `coco_mini`'s 36 regions lies between photographs, 26% so.
    """
    norms = [part for part in cnn.modules() if isinstance(part, _BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = None  # the mean of what it sees, not a moving one
        if norm.affine:
            torch.nn.init.ones_(norm.weight)
    if norms:
        with torch.no_grad():
            cnn(_noise(torch.Generator().manual_seed(_SEED)))


def _noise(generator: torch.Generator, count: int = 16, side: int = 224) -> Tensor:
    """Returns normalised pictures [I, 3, h, w] with structure of every size, as photographs have.

    Grey counts more than colour; pictures differ in brightness, tint and contrast.
    """

    def waves(channels: int) -> Tensor:
        sizes = [1 << power for power in range(side.bit_length())]
        drawn = (torch.randn(count, channels, size, size, generator=generator) for size in sizes)
        return sum((F.interpolate(each, (side, side), mode="bilinear") for each in drawn), torch.zeros(()))

    pictures = waves(1) + 0.3 * waves(3)
    pictures = (pictures - pictures.mean((1, 2, 3), keepdim=True)) / pictures.std((1, 2, 3), keepdim=True)
    contrast = 0.6 + 0.8 * torch.rand(count, 1, 1, 1, generator=generator)
    return contrast * pictures + 0.6 * torch.randn(count, 3, 1, 1, generator=generator)
