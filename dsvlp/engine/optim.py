"""Parameter groups, and the one optimizer: every kind of update behind a group's `algorithm`.

ZeRO hands over flat partitions of a group in place of its parameters, so an update must be
element-wise; it may not look at shapes. Pixel-BERT's two update rules are two algorithms here: "sgd"
for the CNN, "adamw" for the rest. Checkpoints ask `MOMENTS` what state an algorithm has.

**Guard.** A step whose loss or gradient is not finite must leave weights, moments and counter
untouched, on all ranks together. The flag stays on the device (`skip`, 1 to skip): the fused kernel
reads it there, and the host never waits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from dsvlp.objectives.itc import TEMPERATURE_BOUNDS

if TYPE_CHECKING:
    from dsvlp.recipe import Recipe

# Algorithm -> names of its per-element state, in the order of the checkpoint.
MOMENTS: dict[str, tuple[str, ...]] = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}

Part = Literal["cnn", "tower", "fusion", "head", "temperature"]
ALIGNED = 4  # numbers of fp32: 16 bytes, what a GPU loads at once
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, _NormBase)

CNN = "model.image.trunk."
TOWERS = ("model.image.", "model.text.")

# Norms whose weight FIBER's code decays, because it knows norms by their names (FIBER, 2).
DECAYED_NORMS = re.compile(r"model\.fusion\.\d+\.image\.norm\.weight|objectives\.\w+\.head\.\d+\.weight")


def parameter_groups(module: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Returns the optimizer's groups: (cnn, tower, fusion, head, temperature) x (decayed or not), none empty.

    Each has its peak learning rate in "peak_lr"; the temperature's has "bounds", in which the
    optimizer keeps it. A tied parameter is in one group, under its first name.

    Args:
        module: the whole system, before ZeRO takes its parameters apart.
        recipe: `optimizer`, `model.pretrained` and `start`.
    """
    table = recipe.optimizer
    norms = {id(p) for m in module.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name)
        decayed = is_decayed(name, parameter.ndim, id(parameter) in norms, table.decay)
        key = f"{part}/{'decay' if decayed else 'plain'}"
        if key not in groups:
            groups[key] = {
                "name": key,
                "params": [],
                "lr": 0.0,
                "bounds": TEMPERATURE_BOUNDS if part == "temperature" else None,
                **_rule(part, recipe, decayed),
            }
        groups[key]["params"].append(parameter)
    for group in groups.values():
        # ZeRO lays parameters end to end; what would shift the next ones off 16 bytes comes last, or kernels
        # that were compiled for one block's aligned weights would meet another's that are not.
        group["params"].sort(key=lambda parameter: parameter.numel() % ALIGNED > 0)
    return [groups[key] for key in sorted(groups)]


def part_of(name: str) -> Part:
    """Returns the part of the system that a parameter belongs to; ITC's transforms and poolers are heads."""
    if name.startswith(CNN):
        return "cnn"
    if name.endswith(".temperature"):
        return "temperature"
    if name.startswith(TOWERS):
        return "tower"
    return "head" if name.startswith("objectives.") else "fusion"


def is_decayed(name: str, dimensions: int, in_norm: bool, rule: str) -> bool:
    """Returns whether a parameter gets weight decay.

    "matrices" decays what has two dimensions and is no bias, norm or table of relative positions.
    "fiber" is the official code's rule: gates, the temperature and the norms of `DECAYED_NORMS` too.
    """
    if name.endswith((".bias", "bias_table")):
        return False
    if rule == "fiber":
        return not in_norm or DECAYED_NORMS.fullmatch(name) is not None
    return dimensions > 1 and not in_norm


def _rule(part: Part, recipe: Recipe, decayed: bool) -> dict[str, Any]:
    """Returns a group's algorithm and its numbers: for a CNN what `optimizer.cnn` says, else AdamW."""
    table = recipe.optimizer
    if part == "cnn" and table.cnn is not None:
        return {
            "algorithm": "sgd",
            "peak_lr": table.cnn.lr,
            "momentum": table.cnn.momentum,
            "weight_decay": table.cnn.weight_decay if decayed else 0.0,
        }
    return {
        "algorithm": "adamw",
        "peak_lr": table.lr * _factor(part, recipe),
        "weight_decay": table.weight_decay if decayed else 0.0,
        "betas": table.betas,
        "eps": table.eps,
    }


def _factor(part: Part, recipe: Recipe) -> float:
    table = recipe.optimizer
    started = recipe.model.pretrained or recipe.start is not None
    tower = table.backbone_lr_factor if started else 1.0
    return {
        "cnn": tower,
        "tower": tower,
        "fusion": table.fusion_lr_factor,
        "head": table.head_lr_factor,
        "temperature": 1.0,
    }[part]


class GuardedOptimizer(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, algorithm 2) and SGD with momentum, whose updates a device flag can veto.

    Args:
        groups: what `parameter_groups` returns.

    Attributes:
        skip: float32 scalar, 1 where this step must change nothing; set before each step.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        self.skip = torch.zeros(())

    def set_lr(self, factor: float) -> None:
        """Sets each group's learning rate: the schedule's share of its peak."""
        for group in self.param_groups:
            # To 12 digits: a hundredth of 1e-4 is 1e-6, not 1.0000000000000002e-06.
            group["lr"] = float(f"{factor * group['peak_lr']:.12g}")

    def create_state(self, group: dict[str, Any], parameter: Tensor) -> None:
        """Creates a parameter's (or a flat partition's) moments and AdamW's counter, so that a checkpoint
        can be written before the first step and read into a fresh engine."""
        state = self.state[parameter]
        if group["algorithm"] == "adamw":
            state["step"] = torch.zeros((), device=parameter.device)
        for key in MOMENTS[group["algorithm"]]:
            state[key] = torch.zeros_like(parameter, requires_grad=False)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter of `param_groups`; a missing gradient counts as zero.

        ZeRO calls this once for each group or sub-group of a step, with the others hidden.
        """
        for group in self.param_groups:
            if group["params"]:
                update = self._sgd if group["algorithm"] == "sgd" else self._adamw
                update(group)
                self._bound(group)

    def _bound(self, group: dict[str, Any]) -> None:
        """Keeps a group's parameters in its bounds; a forbidden step moves nothing here either."""
        if group["bounds"] is None:
            return
        for parameter in group["params"]:
            bounded = parameter.clamp(*group["bounds"])
            parameter.copy_(torch.where(self.skip > 0, parameter, bounded))

    def _adamw(self, group: dict[str, Any]) -> None:
        parameters = group["params"]
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            found_inf=self.skip,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _sgd(self, group: dict[str, Any]) -> None:
        parameters = group["params"]
        sgd(
            parameters,
            [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters],
            [self.state[p]["momentum_buffer"] for p in parameters],
            fused=True,
            found_inf=self.skip,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Returns the 2-norm of all gradients together, float32 scalar; not finite where one is not."""
    return torch.nn.utils.get_total_norm(gradients, error_if_nonfinite=False)


def clip(gradients: list[Tensor], norm: Tensor, limit: float) -> None:
    """Scales gradients in place so that their norm is at most `limit`, as ZeRO does: no host read."""
    factor = 1.0 / ((norm + 1e-6) / limit).clamp(min=1.0)
    torch._foreach_mul_(gradients, factor)
