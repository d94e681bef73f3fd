"""Names what runs inside a step by the part of the system it belongs to, by hooks that leave no trace.

Forward: the time between a module's two hooks is its part's, less that of modules of other parts inside
it. Backward: a gradient that arrives at a module's output begins that module's backward. What a fused
block computes outside any module (windows, residuals) counts as fusion; losses and the gathering of
passes count as heads. A compiled block is one thing: a fused one counts as fusion with all that is in it.

Without `marked` no hook exists: a plain step pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dsvlp.engine.timer import StepTimer
from dsvlp.layers.compiled import inside_graphs

TOWERS = ("image tower", "text tower", "fusion", "heads")
RECOMPUTED = "recomputed"
GRADIENTS = "gradients"

JOINT = ("image tower", "words", "transformer", "heads")
"""The parts of a system whose one Transformer reads words and image, which has no towers of its own."""

_PREFIXES = {"model.image": TOWERS[0], "model.text": TOWERS[1], "model": TOWERS[2]}
_JOINT_PREFIXES = {
    "model.image": JOINT[0],
    "model.objects": JOINT[0],
    "model.text.embeddings": JOINT[1],
    "model": JOINT[2],
}


def part_of(module: str, joint: bool = False) -> str:
    """Returns the part that a system's module, by its dotted name, belongs to.

    Args:
        module: its name.
        joint: whether one Transformer reads words and image.
    """
    for prefix, part in (_JOINT_PREFIXES if joint else _PREFIXES).items():
        if f"{module}.".startswith(f"{prefix}."):
            return part
    return TOWERS[3]


def backward_of(part: str) -> str:
    """Returns the name of a part's backward."""
    return f"{part}, backward"


@contextmanager
def marked(system: nn.Module, timer: StepTimer, *, backward: bool) -> Iterator[None]:
    """Books the time inside a step's forward and backward on the system's parts.

    Args:
        system: modules are named as its parameters are; its model says whether its Transformer is `joint`.
        timer: the step's.
        backward: also tell whose backward runs; else it is one part.
    """
    marks = _Marks(timer, backward)
    handles, joint = [], getattr(system.model, "joint", False)
    unseen = inside_graphs(system)
    for name, module in system.named_modules():
        if module not in unseen:
            handles += marks.hooks(module, part_of(name, joint))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Marks:
    def __init__(self, timer: StepTimer, backward: bool) -> None:
        self._timer, self._backward = timer, backward

    def hooks(self, module: nn.Module, part: str) -> list[Any]:
        """Returns the handles of a module's hooks."""

        def before(*_: Any) -> None:
            self._timer.enter(RECOMPUTED if self._in_backward() else part)

        def after(_: nn.Module, inputs: Any, output: Any) -> None:
            self._timer.leave()
            if self._backward and torch.is_grad_enabled() and not self._in_backward():
                for tensor in _tensors(output):
                    if tensor.requires_grad:
                        tensor.register_hook(lambda gradient: self._turn(backward_of(part)))

        return [
            module.register_forward_pre_hook(before),
            # Called last, so that no other hook's tensors slip out unmarked.
            module.register_forward_hook(after),
        ]

    def _in_backward(self) -> bool:
        name = self._timer.innermost
        return name is not None and (name in ("backward", RECOMPUTED) or name.endswith(backward_of("")))

    def _turn(self, name: str) -> None:
        if not self._in_backward():
            return  # a gradient taken outside a step
        if self._timer.innermost == "backward":
            # What DeepSpeed does behind the last gradient is no tower's.
            engine = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
            engine.queue_callback(lambda: self._timer.turn(GRADIENTS))
        self._timer.turn(name)


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [tensor for tensor in output if isinstance(tensor, Tensor)] if isinstance(output, tuple) else []
