"""The work of a CNN that no formula knows, counted on the meta device: shapes alone, nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dsvlp.models.cnn import check, recomputes


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

    Raises:
        RecipeError: it is no CNN of stride 32 that timm has.
    """
    check(name)
    with torch.device("meta"):
        net: Any = timm.create_model(name, num_classes=0, global_pool="").train()
        image = torch.empty(1, 3, height, width)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.forward_features(image)
    kept = _kept(net, image)
    recomputed = _kept(net, image) if recomputes(net) else kept
    parameters = sum(p.numel() for p in net.parameters())
    return Counted(parameters, float(counter.get_total_flops()), net.num_features, kept, recomputed)


def _kept(net: Any, image: Tensor) -> float:
    """Returns the bytes that autograd saves in a forward, each storage once, without the parameters."""
    own = {t.untyped_storage()._cdata for t in (*net.parameters(), *net.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net.forward_features(image)
    del out
    return float(sum(storage.nbytes() for storage in storages.values()))
