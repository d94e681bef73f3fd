"""Where ZeRO keeps each parameter: views into DeepSpeed's flat fp32 partitions, stage by stage.

Legend: *flat* is a 1-d fp32 tensor that the optimizer updates in place of parameters: in stage 0 the
parameter itself, in stages 1 and 2 this rank's share of a group, in stage 3 this rank's shares of a
sub-group's parameters, one behind the other. Imports nothing of DeepSpeed, but knows private names
of its ZeRO optimizers (0.19); `zero.Engine` checks that they exist.

Rejected: DeepSpeed's `safe_get_full_*` (collective; with two groups it misses moments, in stage 3 its
setters fail where a size is not divisible) and `safe_get_local_*` (asks for one tensor at a time).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PRIVATE_NAMES: dict[int, tuple[str, ...]] = {
    0: (),
    1: ("single_partition_of_fp32_groups", "bit16_groups", "update_lp_params"),
    2: ("single_partition_of_fp32_groups", "bit16_groups", "update_lp_params"),
    3: (
        "fp32_partitioned_groups_flat",
        "fp16_groups",
        "grad_partitions_flat_buffer",
        "sub_group_to_group_id",
        "checkpoint_event_prologue",
        "checkpoint_event_epilogue",
        "_reassign_or_swap_out_partitioned_parameters",
    ),
}


@dataclass(frozen=True)
class Slice:
    """`flat[offset : offset + count]` holds `parameter.flatten()[start : start + count]`."""

    parameter: Tensor
    flat: Tensor
    offset: int
    start: int
    count: int


def flats(optimizer: Any, stage: int) -> Iterator[tuple[Tensor, int]]:
    """Yields (flat, index of its group) of everything that this rank updates.

    Args:
        optimizer: `DeepSpeedEngine.optimizer`.
        stage: ZeRO stage, 0 to 3.
    """
    if stage == 0:
        for i, group in enumerate(optimizer.param_groups):
            yield from ((parameter, i) for parameter in group["params"])
    elif stage < 3:
        yield from ((flat, i) for i, flat in enumerate(optimizer.single_partition_of_fp32_groups))
    else:
        for j, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
            yield flat, optimizer.sub_group_to_group_id[j]


def slices(optimizer: Any, stage: int, rank: int) -> Iterator[Slice]:
    """Yields the pieces of the trained parameters that this rank keeps; in stage 0 all of each."""
    if stage == 0:
        for flat, _ in flats(optimizer, stage):
            yield Slice(flat, flat, 0, 0, flat.numel())
    elif stage < 3:
        for flat, parameters in zip(
            optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups, strict=True
        ):
            for parameter in parameters:
                mapping = parameter._hp_mapping
                if mapping is not None:  # None: lies in other ranks' partitions altogether
                    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
                    yield Slice(parameter, flat, here.start, there.start, here.numel)
    else:
        for flat, parameters in zip(
            optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True
        ):
            offset = 0
            for parameter in parameters:
                share = parameter.ds_tensor.ds_numel  # equal on all ranks: the last ones are padded
                count = min(share, parameter.ds_numel - rank * share)
                if count > 0:
                    yield Slice(parameter, flat, offset, rank * share, count)
                offset += share


def frozen_slice(parameter: Tensor, stage: int, rank: int) -> Slice | None:
    """Returns the piece of an untrained parameter that this rank keeps, None where it keeps none."""
    if stage < 3:
        return Slice(parameter, parameter, 0, 0, parameter.numel())
    share = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
    count = min(share, parameter.ds_numel - rank * share)  # type: ignore[attr-defined]
    if count <= 0:
        return None
    return Slice(parameter, parameter.ds_tensor, 0, rank * share, count)  # type: ignore[attr-defined]


def view(tensor: Tensor, piece: Slice) -> Tensor:
    """Returns the piece of a flat (or of a moment shaped like it) as a 1-d view."""
    return tensor.detach().view(-1)[piece.offset : piece.offset + piece.count]


@torch.no_grad()
def forget_gradients(optimizer: Any, stage: int) -> None:
    """Zeroes the gradients of the step that was made: in stage 3 a parameter that the next step does not use
    would be updated by them again.

    In every step, whatever the recipe: which parameters a step leaves out is known to its graph alone
    (SemVLP's mode, an objective without targets), and writing this rank's share once is a seventh of what
    the optimizer reads and writes of it.
    """
    if stage == 3:
        optimizer.grad_partitions_flat_buffer.zero_()
        for flat in optimizer.fp32_partitioned_groups_flat:
            if flat.grad is not None:
                flat.grad.zero_()


def before_writing(optimizer: Any, stage: int) -> None:
    """Makes the partitions the only copy, so that writing them is enough. Every rank must call."""
    if stage == 3:
        optimizer.checkpoint_event_prologue()


@torch.no_grad()
def after_writing(optimizer: Any, stage: int) -> None:
    """Brings the module's weights in line with the written partitions. Every rank must call."""
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        for j in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(j)
        optimizer.checkpoint_event_epilogue()
