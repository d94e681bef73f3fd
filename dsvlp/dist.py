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


def reduce_scatter_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Returns this rank's rows [B, ...] of the sum over ranks of [world x B, ...]. Every rank must call."""
    if world_size() == 1:
        return tensor
    out = tensor.new_empty((len(tensor) // world_size(), *tensor.shape[1:]))
    td.reduce_scatter_tensor(out, tensor.contiguous())
    return out


class _Gather(torch.autograd.Function):
    """All-gather whose backward returns to each rank the sum of all ranks' gradients for its rows."""

    @staticmethod
    def forward(context: Any, tensor: torch.Tensor, sent_as: torch.dtype) -> torch.Tensor:
        return all_gather(tensor.to(sent_as)).flatten(0, 1).to(tensor.dtype)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return reduce_scatter_sum(gradients[0]), None


def gather_with_gradient(tensor: torch.Tensor, sent_as: torch.dtype | None = None) -> torch.Tensor:
    """Returns the rows of all ranks one after another, [world x B, ...]; gradients flow to all. Every rank
    must call, in forward and in backward.

    Args:
        tensor: [B, ...], of one shape on all ranks.
        sent_as: dtype in which rows go between ranks, and to which all are rounded, the own ones too; None:
            the tensor's. Gradients are summed in the tensor's own: a sum over ranks loses no bits as ranks
            are added.
    """
    if world_size() == 1:
        return tensor
    return _Gather.apply(tensor, sent_as or tensor.dtype)  # type: ignore[no-any-return]


def agreed_most(values: list[int], group: td.ProcessGroup | None) -> list[int]:
    """Returns each value's maximum over ranks. Every rank must call.

    Args:
        values: as many on every rank.
        group: a `side_group`: hosts agree by themselves, and wait for no device.
    """
    if group is None:
        return values
    most = torch.tensor(values)
    td.all_reduce(most, op=td.ReduceOp.MAX, group=group)
    return most.tolist()  # type: ignore[no-any-return]


def side_group(seconds: float) -> td.ProcessGroup | None:
    """Returns a group of all ranks' hosts for one thread, or purpose, of its own; None on one process.

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
