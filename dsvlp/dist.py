"""Collectives, identity on one process. Every function here must be called by every rank.

Nothing else in the project calls `torch.distributed`, and a model never asks its rank.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as td


def rank() -> int:
    """Returns this process's rank, 0 where there is no process group."""
    return td.get_rank() if td.is_available() and td.is_initialized() else 0


def world_size() -> int:
    """Returns the number of processes, 1 where there is no process group."""
    return td.get_world_size() if td.is_available() and td.is_initialized() else 1


def local_rank() -> int:
    """Returns the rank on this machine, from the environment that the launcher set."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def device() -> torch.device:
    """Returns the device of this process: its own GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    return torch.device("cpu")


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the sum over ranks; the tensor is changed in place. Every rank must call."""
    if world_size() > 1:
        td.all_reduce(tensor)
    return tensor


def all_reduce_max(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the maximum over ranks; the tensor is changed in place. Every rank must call."""
    if world_size() > 1:
        td.all_reduce(tensor, op=td.ReduceOp.MAX)
    return tensor


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the equal-shaped tensors of all ranks, stacked: [world, ...]. Every rank must call."""
    if world_size() == 1:
        return tensor[None]
    out = tensor.new_empty((world_size(), *tensor.shape))
    td.all_gather(list(out.unbind(0)), tensor.contiguous())
    return out


class _Gather(torch.autograd.Function):
    """All-gather whose backward returns to each rank the sum of all ranks' gradients for its rows."""

    @staticmethod
    def forward(context: Any, tensor: torch.Tensor) -> torch.Tensor:
        context.rows = len(tensor)
        return all_gather(tensor).flatten(0, 1)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        # A copy: autograd may hand the same gradient to another function, and the sum is made in place.
        summed = all_reduce_sum(gradients[0].clone(memory_format=torch.contiguous_format))
        return summed[rank() * context.rows : (rank() + 1) * context.rows]


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the rows of all ranks one after another, [world x B, ...]; gradients flow to all. Every rank
    must call, in forward and in backward."""
    if world_size() == 1:
        return tensor
    return _Gather.apply(tensor)  # type: ignore[no-any-return]


def side_group(seconds: float) -> td.ProcessGroup | None:
    """Returns a group of all ranks for one thread beside the training's; None on one process.

    It lives on the CPU; its calls raise where a rank is missing after `seconds`. Every rank must call.
    """
    if world_size() == 1:
        return None
    return td.new_group(backend="gloo", timeout=timedelta(seconds=seconds))


def gather_objects(value: Any, group: td.ProcessGroup | None = None) -> list[Any]:
    """Returns the JSON-like values of all ranks, by rank. Small control data only. Every rank must call."""
    if world_size() == 1:
        return [value]
    out: list[Any] = [None] * world_size()
    td.all_gather_object(out, value, group=group)
    return out


def broadcast_object(value: Any) -> Any:
    """Returns rank 0's value on every rank. Small control data only. Every rank must call."""
    if world_size() == 1:
        return value
    box = [value]
    td.broadcast_object_list(box, src=0)
    return box[0]


def is_lost_peer(error: BaseException) -> bool:
    """Returns whether an exception of a collective says no more than that another rank is gone."""
    if isinstance(error, td.DistError):
        return True
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("gloo", "monitoredBarrier", "NCCL")
    )


def barrier(seconds: float = 600.0) -> None:
    """Waits for all ranks; with gloo raises where one is missing after `seconds`. Every rank must call."""
    if world_size() == 1:
        return
    if td.get_backend() == "gloo":
        td.monitored_barrier(timeout=timedelta(seconds=seconds))
    else:
        td.barrier()
