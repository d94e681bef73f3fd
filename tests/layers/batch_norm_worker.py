"""One of two ranks: a small CNN whose norms see both ranks' images; rank 0 writes to FILE: `two FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from dsvlp import dist
from dsvlp.engine.zero import join
from dsvlp.launch.local import leave
from dsvlp.layers.batch_norm import SyncBatchNorm2d
from dsvlp.layers.recompute import Mode, run_block

CUT = 4  # images of rank 0; the other has the rest


def network(norm: type[nn.BatchNorm2d]) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 6, 3, 2, bias=False), nn.Conv2d(6, 5, 3, bias=False)
    layers = [first, norm(6), nn.ReLU(), second, norm(5), nn.ReLU()]
    net = nn.Sequential(*layers)
    with torch.no_grad():
        for layer in (net[1], net[4]):
            layer.weight.uniform_(0.5, 2)
            layer.bias.uniform_(-1, 1)
    return net


def ran(net: nn.Sequential, images: Tensor, goal: Tensor, mode: Mode = "none") -> dict[str, Tensor]:
    """Returns output, gradients and statistics after two backwards."""
    images = images.clone().requires_grad_()
    for _ in range(2):
        out = run_block(net, 0, mode, images)
        (out * goal).square().sum().backward()
    found = {"output": out.detach(), "images": images.grad}
    found |= {name: parameter.grad for name, parameter in net.named_parameters()}
    return found | {name: buffer.double() for name, buffer in net.named_buffers()}


def compare(mode: Mode) -> dict[str, float]:
    """Returns the largest difference to plain BatchNorm on one process with all images, by tensor."""
    torch.manual_seed(1)
    images, goal = 3 + torch.randn(6, 3, 11, 9), torch.randn(6, 5, 3, 2)
    rows = slice(0, CUT) if dist.rank() == 0 else slice(CUT, None)
    expected = ran(network(nn.BatchNorm2d), images, goal)
    found = ran(network(SyncBatchNorm2d), images[rows], goal[rows], mode)
    out = {}
    for name, tensor in found.items():
        reference = expected[name][rows] if name in ("output", "images") else expected[name]
        if name.endswith((".weight", ".bias")):
            tensor = dist.all_reduce_sum(tensor.clone())  # a rank has the gradient of its own loss
        difference = (tensor - reference).abs().max() / reference.abs().max().clamp(min=1e-6)
        out[name] = float(dist.all_reduce_max(difference))
    return out


def bf16() -> list[str]:
    """Returns the dtypes of the output and of the input's gradient in bf16."""
    maps = torch.randn(4, 6, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    out = SyncBatchNorm2d(6)(maps)
    out.float().sum().backward()
    return [str(out.dtype), str(maps.grad.dtype)]


if __name__ == "__main__":
    join(120)
    results = {"none": compare("none"), "full": compare("full"), "dtypes": bf16()}
    if dist.rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(results))
    dist.barrier(60)
    leave(0)  # libraries have been seen to abort in their exit handlers
