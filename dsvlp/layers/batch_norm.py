"""BatchNorm over the images of all ranks, with its gradient; for nets whose share of a batch is small.

torch's SyncBatchNorm refuses the CPU. This one takes one collective in forward and one in backward, keeps
of its input what BatchNorm keeps, and leaves the running statistics equal on all ranks.

Legend: I images of this rank, C channels, h x w grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from dsvlp import dist

PIXELS = (0, 2, 3)  # all sizes of [I, C, h, w] but the channels


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d of one process that has the images of all ranks. In training every rank must call."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns the normalised maps [I, C, h, w] in the dtype of `input`."""
        if not self.training or dist.world_size() == 1:
            return super().forward(input)
        out, mean, variance, count = _Normalised.apply(input, self.weight, self.bias, self.eps)
        self._remember(mean, variance * count / (count - 1))
        return out  # type: ignore[no-any-return]

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


class _Normalised(torch.autograd.Function):
    """(x - mean) / deviation * weight + bias, the statistics over all ranks; they get no gradient outside."""

    @staticmethod
    def forward(
        context: Any, maps: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _statistics(maps.float())
        inverse = (variance + eps).rsqrt()
        context.save_for_backward(maps, weight, mean, inverse, count)
        out = (maps.float() - _wide(mean)) * _wide(inverse * weight) + _wide(bias)
        context.mark_non_differentiable(mean, variance, count)
        return out.to(maps.dtype), mean, variance, count

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        maps, weight, mean, inverse, count = context.saved_tensors
        outer = gradients[0].float()
        normal = (maps.float() - _wide(mean)) * _wide(inverse)
        own = torch.stack([outer.sum(PIXELS), (outer * normal).sum(PIXELS)])  # bias's and weight's gradient
        of_mean, of_scale = dist.all_reduce_sum(own.clone()) / count
        inner = (outer - _wide(of_mean) - normal * _wide(of_scale)) * _wide(inverse * weight)
        return inner.to(maps.dtype), own[1], own[0], None


def moving_statistics(module: nn.Module) -> list[Tensor]:
    """Returns the running statistics that a module's forward moves; none where they are frozen."""
    norms = [part for part in module.modules() if isinstance(part, _NormBase) and part.training]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def _statistics(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean and biased variance [C] over all ranks, and the number of values a channel.

    The ranks' own variances are joined (Chan et al.): sums of squares would cancel.
    """
    variance, mean = torch.var_mean(maps, PIXELS, correction=0)
    count = mean.new_tensor([maps.numel() / maps.shape[1]])
    every = dist.all_gather(torch.cat([mean, variance, count]))  # [ranks, 2 C + 1]
    means, variances, counts = every.split((len(mean), len(mean), 1), 1)
    shares = counts / counts.sum()
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean).square())).sum(0), counts.sum()


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None]
