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
            the same, for trials without any; its BatchNorm normalises each picture by itself.
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
            self._one_by_one = weights == RANDOM and _normalise_by_picture(cnn)
            if weights != RANDOM:
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
        """Yields (places, their maps [I, C, h, w]) of pictures uint8 [3, H, W] on the device.

        Raises:
            DataError: drawn weights, and a picture of a single cell.
        """
        sizes = [self._sizes.of(picture.shape[1], picture.shape[2]) for picture in pictures]
        if self._one_by_one and (STRIDE, STRIDE) in sizes:
            raise DataError(
                f"a picture is resized to {STRIDE} x {STRIDE} pixels: one cell",
                "several: drawn weights normalise each picture by its own cells",
                "Raise --shorter and --longer, or give --weights",
            )
        for places in [[place] for place in range(len(sizes))] if self._one_by_one else alike(sizes):
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


def _normalise_by_picture(cnn: CNN) -> bool:
    """Prepares drawn weights, and returns whether there was anything to prepare: a BatchNorm.

    It has no statistics yet, and timm starts residual branches at zero. As they are, all pictures would have
    nearly the same features (a ResNet-50's: cosine 0.8, size 0.03).
    """
    norms = [part for part in cnn.modules() if isinstance(part, _BatchNorm)]
    for norm in norms:
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
        if norm.affine:
            torch.nn.init.ones_(norm.weight)
    return bool(norms)
