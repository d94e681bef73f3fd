"""The one file that knows DeepSpeed: ZeRO 0-3, in fp32 or bf16 autocast, behind a small `Engine`.

What is ours and why:

* The optimizer is an object of ours (`optim.GuardedOptimizer`), its state made before the first step, and
  the learning rate is set at each step; there is no scheduler to save.
* bf16 means autocast over fp32 masters, in every stage. DeepSpeed's own `bf16` casts the parameters
  and not the buffers (BatchNorm fails on the CPU) and drifts in stage 0.
* Stage 0 has no gradient norm in DeepSpeed: norm, clipping and the check are done here.
* A step that is not finite is skipped in every stage, on all ranks together: DeepSpeed's own norm
  decides in stages 1 to 3, ours in stage 0, and a flag of the caller (the loss) in all of them.
  BatchNorm's running statistics, which forward has moved by then, go back to where they were.
* State is read and written as views of DeepSpeed's flat partitions (`partitions`): nothing is gathered.

A few private names of DeepSpeed 0.19 are used; they are checked once, when an engine is built.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from dsvlp import dist
from dsvlp.engine import dsconfig, partitions
from dsvlp.engine.door import Door, unpack
from dsvlp.engine.fragments import BUFFER, WEIGHT, Fragment, Reader, owners
from dsvlp.engine.optim import MOMENTS, GuardedOptimizer, clip, parameter_groups, total_norm
from dsvlp.errors import CheckpointError, MissingDependency, RunError
from dsvlp.layers.batch_norm import moving_statistics

# Its import says on every process that there is no GPU.
logging.getLogger("DeepSpeed").addFilter(
    lambda record: "Setting accelerator to CPU" not in record.getMessage()
)
import deepspeed  # noqa: E402

if TYPE_CHECKING:
    from dsvlp.recipe import Recipe

log = logging.getLogger(__name__)

SUPPORTED = "0.19."


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step did; both tensors stay on the device.

    Attributes:
        grad_norm: float32 scalar, 2-norm of the averaged gradient before clipping; infinite where skipped
            for its sake.
        finite: bool scalar, False where the step changed nothing.
    """

    grad_norm: Tensor
    finite: Tensor


def join(timeout_seconds: float = 1800.0) -> None:
    """Joins the process group that the launcher's environment describes; a group of one without a launcher.

    Calling it again does nothing. Every rank must call.

    Raises:
        RunError: the environment names a rank without a meeting point.
        MissingDependency: another DeepSpeed than 0.19.
    """
    if not deepspeed.__version__.startswith(SUPPORTED):
        raise MissingDependency(
            f"deepspeed {deepspeed.__version__} is installed",
            f"{SUPPORTED}x: checkpoints read its private layout",
            f'pip install "deepspeed=={SUPPORTED}*"',
        )
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls names of torch.distributed that torch 2.13 renames; it says so at every collective.
    warnings.filterwarnings("ignore", ".*is deprecated. Please use", FutureWarning, "torch.distributed")
    if not torch.cuda.is_available():
        # It would be compiled now, for a minute, and a killed compilation hangs every later run.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if td.is_initialized():
        return
    os.environ.setdefault("LOCAL_RANK", "0")
    timeout = timedelta(seconds=timeout_seconds)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" not in os.environ:
        td.init_process_group(backend, store=td.HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        missing = [key for key in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if key not in os.environ]
        if missing:
            raise RunError(
                f"RANK is set, {' and '.join(missing)} not",
                "all four, as torchrun sets them",
                "Use a launcher",
            )
        if torch.cuda.is_available():
            torch.cuda.set_device(dist.device())
        td.init_process_group(backend, timeout=timeout)
    deepspeed.init_distributed(verbose=False)


class Engine:
    """A system under ZeRO. Every method must be called by every rank, in the same order.

    Args:
        system: the module to train; its parameters' names are the checkpoint's names.
        recipe: `engine`, `optimizer`, `batch`, `model.pretrained`.
        accumulation: micro-batches of an optimizer step on each process.

    Raises:
        RecipeError: a layout that sets what the recipe owns, or sizes that do not multiply.
        MissingDependency: a DeepSpeed whose private names differ.
    """

    def __init__(self, system: nn.Module, recipe: Recipe, *, accumulation: int) -> None:
        join(recipe.engine.watchdog_seconds)
        config = dsconfig.deepspeed_config(recipe, accumulation=accumulation, world=dist.world_size())
        self.stage = dsconfig.stage(config)
        self.device = dist.device()
        self.optimizer = GuardedOptimizer(parameter_groups(system, recipe))
        self._clip_norm = recipe.optimizer.clip_norm
        self._names = {id(p): name for name, p in system.named_parameters()}
        self._shapes = {name: tuple(p.shape) for name, p in system.named_parameters()}
        self._group_of = {
            self._names[id(p)]: i for i, g in enumerate(self.optimizer.param_groups) for p in g["params"]
        }
        self._statistics = moving_statistics(system)
        self._statistics_before: list[Tensor] = []  # as the step began; none between steps
        self._door = Door(system)
        self._engine, *_ = deepspeed.initialize(
            model=self._door, optimizer=self.optimizer, config=config, dist_init_required=False
        )
        self._check_private_names()
        self.optimizer.skip = torch.zeros((), device=self.device)
        for flat, group in partitions.flats(self._engine.optimizer, self.stage):
            self.optimizer.create_state(self.optimizer.param_groups[group], flat)

    def _check_private_names(self) -> None:
        missing = [
            name for name in partitions.PRIVATE_NAMES[self.stage] if not hasattr(self._engine.optimizer, name)
        ]
        if missing:
            raise MissingDependency(
                f"deepspeed {deepspeed.__version__} has no {missing[0]} in ZeRO stage {self.stage}",
                f"a release {SUPPORTED}x that has it",
                f'pip install "deepspeed=={SUPPORTED}8"',
            )

    @property
    def system(self) -> nn.Module:
        """The wrapped system. Its parameters may be used through `engine(request)` only."""
        return self._door.system

    def train(self) -> None:
        """Switches dropout and batch statistics on."""
        self._engine.train()
        self._statistics = moving_statistics(self.system)

    def eval(self) -> None:
        """Switches dropout and batch statistics off, and averages BatchNorm's running ones over ranks."""
        self._average_statistics()
        self._engine.eval()

    def __call__(self, request: Any) -> Any:
        """Returns what the system's `forward(request)` returns; under autocast in bf16."""
        if self._engine.training and not self._statistics_before:
            self._statistics_before = [own.clone() for own in self._statistics]
        tensors = self._engine(request)
        return unpack(self._door.shape_of_output, tensors)

    def backward(self, loss: Tensor) -> None:
        """Accumulates gradients of a scalar; reduces them over ranks at the accumulation boundary.

        Args:
            loss: sum_k weight_k * sum_k(local) * world * accumulation / N_k, N_k counted over all ranks and
                micro-batches of the step: DeepSpeed divides by both.
        """
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # only counts the micro-step

    def step(self, factor: float, finite: Tensor | None = None) -> StepResult:
        """Updates the weights after the last micro-batch's backward, or changes nothing where not finite.

        Args:
            factor: the schedule's share of every group's peak learning rate.
            finite: bool scalar, equal on all ranks; False vetoes the step (the loss was not finite).
        """
        self.optimizer.set_lr(factor)
        allowed = torch.ones((), dtype=torch.bool, device=self.device) if finite is None else finite
        norm = self._norm_and_clip() if self.stage == 0 else None
        if norm is not None:
            allowed = allowed & norm.isfinite()
        self.optimizer.skip.copy_(~allowed)
        self._engine.step()
        if norm is None:
            norm = torch.as_tensor(
                self._engine.get_global_grad_norm(), dtype=torch.float32, device=self.device
            )
            allowed = allowed & norm.isfinite()
        partitions.forget_gradients(self._engine.optimizer, self.stage)
        self._settle_statistics(allowed)
        return StepResult(norm, allowed)

    def _norm_and_clip(self) -> Tensor:
        gradients = [p.grad for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = total_norm(gradients)
        if self._clip_norm > 0:
            clip(gradients, norm, self._clip_norm)
        return norm

    @torch.no_grad()
    def _settle_statistics(self, finite: Tensor) -> None:
        """Takes back what a step that is not finite has done to BatchNorm's running statistics."""
        for own, before in zip(self._statistics, self._statistics_before, strict=False):  # or there are none
            own.copy_(torch.where(finite, own, before))
        self._statistics_before = []

    def _views(self) -> Iterator[tuple[Fragment, bool]]:
        """Yields (piece of state here, whether every rank has the whole), in one order on all ranks."""
        outer = self._engine.optimizer
        for piece in partitions.slices(outer, self.stage, dist.rank()):
            name = self._names[id(piece.parameter)]
            state = self.optimizer.state[piece.flat]
            tensors = {WEIGHT: piece.flat, **{key: state[key] for key in self._moments(name)}}
            for key, tensor in tensors.items():
                yield self._fragment(name, key, partitions.view(tensor, piece), piece.start), self.stage == 0
        for name, parameter in self.system.named_parameters():
            if name not in self._group_of:
                share = partitions.frozen_slice(parameter, self.stage, dist.rank())
                if share is not None:
                    tensor = partitions.view(share.flat, share)
                    yield self._fragment(name, WEIGHT, tensor, share.start), self.stage < 3
        for name, buffer in self._buffers():
            yield Fragment(name, BUFFER, 0, buffer.view(-1), tuple(buffer.shape)), True

    def _fragment(self, name: str, state: str, tensor: Tensor, start: int) -> Fragment:
        return Fragment(name, state, start, tensor, self._shapes[name])

    def _moments(self, name: str) -> tuple[str, ...]:
        return MOMENTS[self.optimizer.param_groups[self._group_of[name]]["algorithm"]]

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the buffers that are state; those marked non-persistent are derived from the recipe."""
        for prefix, module in self.system.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    yield f"{prefix}.{name}" if prefix else name, buffer

    def fragments(self) -> list[Fragment]:
        """Returns the state that this rank writes: masters, moments, frozen parameters and buffers.

        The fragments of all ranks are the whole state, each element once. They are views of the live
        state: copy them before the next step. BatchNorm's statistics are averaged over ranks first.
        """
        self._average_statistics()
        every = list(self._views())
        replicated = [fragment.tensor.numel() for fragment, whole in every if whole]
        ranks = iter(owners(replicated, dist.world_size()))
        return [fragment for fragment, whole in every if not whole or next(ranks) == dist.rank()]

    def rates(self) -> dict[str, float]:
        """Returns part of the system ("cnn", "tower", ...) -> its learning rate at the last step."""
        return {group["name"].partition("/")[0]: group["lr"] for group in self.optimizer.param_groups}

    def layout_state(self) -> dict[str, Any]:
        """Returns the engine's counters as JSON. Waits for the device."""
        steps = {int(state["step"]) for state in self.optimizer.state.values() if "step" in state}
        return {
            "updates": max(steps, default=0),
            "steps": self._engine.global_steps,
            "samples": self._engine.global_samples,
            "skipped": self._engine.skipped_steps,
            "stage": self.stage,
            "world": dist.world_size(),
        }

    @torch.no_grad()
    def restore(self, reader: Reader) -> None:
        """Reads weights, moments, buffers and counters, written in any stage by any number of ranks.

        Args:
            reader: a verified checkpoint's; its `state["engine"]` is what `layout_state` returned.

        Raises:
            CheckpointError: names the tensors that are missing, unexpected or of another shape.
        """
        self._check_table(reader)
        self._statistics_before = []
        counters = reader.state["engine"]
        outer = self._engine.optimizer
        partitions.before_writing(outer, self.stage)
        for fragment, _ in self._views():
            values = reader.read(fragment.name, fragment.state, fragment.start, fragment.tensor.numel())
            fragment.tensor.copy_(values)
        partitions.after_writing(outer, self.stage)
        for inner in self.optimizer.state.values():
            if "step" in inner:
                inner["step"].fill_(counters["updates"])
        self._engine.global_steps = counters["steps"]
        self._engine.global_samples = counters["samples"]
        self._engine.skipped_steps = counters["skipped"]

    def _check_table(self, reader: Reader) -> None:
        expected: dict[tuple[str, str], tuple[int, ...]] = {}
        for name, shape in self._shapes.items():
            keys = (WEIGHT, *self._moments(name)) if name in self._group_of else (WEIGHT,)
            expected.update({(name, key): shape for key in keys})
        expected.update({(name, BUFFER): tuple(buffer.shape) for name, buffer in self._buffers()})
        found = reader.table()
        wrong = [
            f"{name} ({state}): {found.get((name, state), 'absent')} in the checkpoint, "
            f"{expected.get((name, state), 'absent')} in the system"
            for name, state in sorted(expected.keys() | found.keys())
            if found.get((name, state)) != expected.get((name, state))
        ]
        if wrong:
            raise CheckpointError(
                f"{len(wrong)} tensors of the checkpoint do not fit the system: {'; '.join(wrong[:5])}",
                "the same model and objectives as when it was written",
                "Resume with the recipe that stands in the run's recipe.json",
            )

    @torch.no_grad()
    def _average_statistics(self) -> None:
        """Averages BatchNorm's running statistics, which each rank gathers by itself, over ranks.

        Training goes on with the average: otherwise a resumed run would differ.
        """
        if dist.world_size() == 1:
            return
        for module in self.system.modules():
            if isinstance(module, _NormBase):
                for buffer in (module.running_mean, module.running_var):
                    if buffer is not None:
                        buffer.copy_(dist.all_reduce_sum(buffer.clone()) / dist.world_size())

    @torch.no_grad()
    def weights(self, names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yields (name, fp32 tensor on the CPU) of the parameters named, whole, in one order on all ranks.

        Gathers one parameter at a time in stage 3, and waits for the device. Every rank must name the same
        and go through to the end.

        Args:
            names: those that the system has; None: all.
        """
        for name, parameter in self.system.named_parameters():
            if names is not None and name not in names:
                continue
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                tensor = parameter.detach().to("cpu", torch.float32, copy=True)
            yield name, tensor

    def close(self) -> None:
        """Removes DeepSpeed's hooks; the engine cannot be used afterwards."""
        self._engine.destroy()
