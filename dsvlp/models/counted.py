"""The work of a CNN that no formula knows, counted on the meta device: shapes alone, nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dsvlp.models.cnn import STRIDE, backbone, try_recomputing

IMAGES = 2  # BatchNorm of one number a channel, as after pooling, refuses one in training


@dataclass(frozen=True)
class Counted:
    """A trunk without pooling and classifier, for one image.

    Attributes:
        parameters: trainable numbers.
        forward: FLOP, one multiply-add being 2.
        channels: of the last map.
        kept: bytes that autograd keeps in fp32.
        kept_recomputing: the same where timm recomputes its blocks, if it can.
    """

    parameters: int
    forward: float
    channels: int
    kept: float
    kept_recomputing: float


@cache
def count(name: str, height: int, width: int) -> Counted:
    """Returns the work of timm's CNN of a name for an image of so many pixels.

    A net that adds maps of several strides (DLA, HRNet) reads no 800 x 1066; it is counted on the canvas of
    whole strides that batches give that image.

    Raises:
        RecipeError: it is no CNN of stride 32 that timm has.
    """
    with torch.device("meta"):
        net: Any = backbone(name).train()
        images = torch.empty(IMAGES, 3, height, width)
    try:
        forward = _flop(net, images)
    except RuntimeError:
        images = images.new_empty(IMAGES, 3, *(-(-side // STRIDE) * STRIDE for side in (height, width)))
        forward = _flop(net, images)
    kept = _kept(net, images)
    recomputed = _kept(net, images) if try_recomputing(net) else kept
    parameters = sum(p.numel() for p in net.parameters())
    return Counted(parameters, forward, net.num_features, kept, recomputed)


def _flop(net: Any, images: Tensor) -> float:
    """Returns the FLOP of a forward for one image."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.forward_features(images)
    return counter.get_total_flops() / IMAGES


def _kept(net: Any, images: Tensor) -> float:
    """Returns the bytes an image that autograd saves, each storage once, without the parameters."""
    own = {t.untyped_storage()._cdata for t in (*net.parameters(), *net.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net.forward_features(images)
    del out
    return sum(storage.nbytes() for storage in storages.values()) / IMAGES
