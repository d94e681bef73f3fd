"""The module that DeepSpeed wraps: it turns our dataclasses into a tuple of tensors and back.

DeepSpeed hooks the tensors of an output to learn that backward begins, and looks for them in tuples,
lists and dicts only. A `Loss` or `States` would hide them: gradients would silently not be reduced.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class _Slot:
    index: int


def pack(value: Any, tensors: list[Tensor]) -> Any:
    """Returns `value` with every tensor replaced by its place in `tensors`, which is appended to.

    Goes through dataclasses, dicts, lists and tuples; anything else stays as it is.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Slot(len(tensors) - 1)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: pack(getattr(value, f.name), tensors) for f in fields(value) if f.init}
        return type(value)(**parts)
    if isinstance(value, dict):
        return {key: pack(inner, tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(pack(inner, tensors) for inner in value)
    return value


def unpack(value: Any, tensors: tuple[Tensor, ...]) -> Any:
    """Returns what `pack` was given, with `tensors` in their places."""
    if isinstance(value, _Slot):
        return tensors[value.index]
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(
            **{f.name: unpack(getattr(value, f.name), tensors) for f in fields(value) if f.init}
        )
    if isinstance(value, dict):
        return {key: unpack(inner, tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(unpack(inner, tensors) for inner in value)
    return value


class Door(nn.Module):
    """A system whose outputs are flat tuples of tensors.

    Args:
        system: any module whose `forward(request)` returns nested dataclasses of tensors.

    Attributes:
        shape_of_output: the last output, tensors replaced by their places.
    """

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system
        self.shape_of_output: Any = None

    def forward(self, request: Any) -> tuple[Tensor, ...]:
        """Returns the tensors of the system's output."""
        tensors: list[Tensor] = []
        self.shape_of_output = pack(self.system(request), tensors)
        return tuple(tensors)
