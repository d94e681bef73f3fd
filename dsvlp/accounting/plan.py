"""What a run will cost, before anything is submitted: arithmetic on a recipe and a number of GPUs.

Nothing here is measured but what a caller brings: an MFU from `dsvlp bench step --json`, a data set's
bytes. Texts count at their full length. Torch-free.

Legend: N processes, one a GPU; P pairs of a micro-batch; A micro-batches of a step.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dsvlp import config
from dsvlp.accounting import flops
from dsvlp.accounting.assumptions import Assumptions
from dsvlp.accounting.communication import Network, Traffic, traffic
from dsvlp.accounting.hardware import Device
from dsvlp.accounting.kept import Mode
from dsvlp.accounting.layout import Layout
from dsvlp.accounting.memory import (
    HostMemory,
    Memory,
    host_memory,
    image_bytes,
    largest_micro_batch,
    memory,
)
from dsvlp.accounting.papers import PAPERS, Paper
from dsvlp.accounting.saving import HOUR, Allocations, Checkpointing, allocations, checkpointing
from dsvlp.accounting.worlds import check_world, valid_worlds
from dsvlp.errors import RecipeError
from dsvlp.recipe import Recipe, SemVLPModel, accumulation, fetches_negatives, micro_pairs

MODES: tuple[Mode, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class Cluster:
    """What is asked for."""

    nodes: int
    gpus: int
    device: Device
    time_limit_hours: float | None = None

    @property
    def world(self) -> int:
        """N."""
        return self.nodes * self.gpus

    def network(self, gbit: float) -> Network:
        """Returns the bandwidths of links and of nodes with a network of `gbit` Gbit/s."""
        return Network(self.device.link, gbit * 1e9 / 8 if self.nodes > 1 else None)


@dataclass(frozen=True)
class Stage:
    """A ZeRO layout on this cluster.

    Attributes:
        name: the layout.
        memory: of a GPU at the recipe's micro-batch.
        host: of a process.
        fits: whether the card has room.
        largest_micro_batch: the most pairs that fit.
        traffic: of a step.
        traffic_seconds: at the stated bandwidths, nothing hidden.
    """

    name: str
    memory: Memory
    host: HostMemory
    fits: bool
    largest_micro_batch: int
    traffic: Traffic
    traffic_seconds: float


@dataclass(frozen=True)
class Recomputation:
    """A mode of `engine.activation_checkpointing` in the recipe's layout."""

    mode: Mode
    activations: float
    total: float
    fits: bool
    largest_micro_batch: int


@dataclass(frozen=True)
class Speed:
    """A step and the run, at the assumed MFU of the whole step; a slower network sets the pace instead."""

    flop_per_pair: float
    step_seconds: float
    pairs_per_second: float
    hours: float
    gpu_hours: float
    bound_by_network: bool


@dataclass(frozen=True)
class DataNeeds:
    """What the loader must bring to keep a GPU busy.

    Attributes:
        images_per_second: a GPU.
        megabytes_per_second: a GPU, of JPEGs (None where the data set is not here) or region features.
        cores: a GPU, decoding on the CPU; region features need none.
        threads: the recipe's `data.workers`.
    """

    images_per_second: float
    megabytes_per_second: float | None
    cores: float
    threads: int


@dataclass(frozen=True)
class Plan:
    """All of it.

    Attributes:
        parameters: trained numbers.
        pairs, accumulation: P and A.
        worlds: all numbers of GPUs that can share the batch.
        stages: the layouts that were compared.
        recomputation: the modes in the recipe's layout.
        allocations: None without a time limit.
        paper: the paper's own run; None where it does not say its hours, or of another size.
        least_world: the fewest GPUs on which the recipe fits as it stands; None: on none.
    """

    recipe: Recipe
    cluster: Cluster
    assumptions: Assumptions
    parameters: int
    pairs: int
    accumulation: int
    worlds: tuple[int, ...]
    stages: tuple[Stage, ...]
    recomputation: tuple[Recomputation, ...]
    speed: Speed
    checkpointing: Checkpointing
    allocations: Allocations | None
    data: DataNeeds
    paper: Paper | None
    least_world: int | None

    @property
    def stage(self) -> Stage:
        """The recipe's own layout."""
        return next(stage for stage in self.stages if stage.name == self.recipe.engine.zero)


def plan(recipe: Recipe, layouts: list[Layout], cluster: Cluster, assumptions: Assumptions) -> Plan:
    """Returns what a run of the recipe on a cluster will cost.

    Args:
        recipe: the run.
        layouts: those that are compared; the recipe's own among them.
        cluster: where it is to run.
        assumptions: what is taken for granted.

    Raises:
        RecipeError: a world size that does not divide the batch, a card on which nothing fits, a time limit
            shorter than a checkpoint interval.
    """
    check_world(recipe, cluster.world)
    pairs, times = micro_pairs(recipe, cluster.world), accumulation(recipe, cluster.world)
    network = cluster.network(assumptions.network_gbit)
    stages = tuple(_stage(recipe, layout, cluster, pairs, times, network) for layout in layouts)
    own = next(layout for layout in layouts if layout.name == recipe.engine.zero)
    modes = tuple(_recomputation(recipe, own, cluster, pairs, times, mode) for mode in MODES)
    _check_room(cluster.device, stages, modes)
    mine = next(stage for stage in stages if stage.name == own.name)
    speed = speed_of(recipe, cluster, assumptions.mfu, mine.traffic_seconds)
    saves = checkpointing(recipe, cluster.world, speed.step_seconds, assumptions)
    paper = PAPERS.get(recipe.model.system)
    return Plan(
        recipe,
        cluster,
        assumptions,
        flops.parameters(recipe),
        pairs,
        times,
        tuple(valid_worlds(recipe)),
        stages,
        modes,
        speed,
        saves,
        allocations(recipe, cluster.time_limit_hours, speed.step_seconds, assumptions),
        data_needs(recipe, speed, cluster.world, assumptions),
        paper if paper is not None and paper.hours and paper.is_like(speed.flop_per_pair) else None,
        least_world(recipe, own, cluster.device),
    )


def least_world(recipe: Recipe, layout: Layout, device: Device) -> int | None:
    """Returns the fewest GPUs on which the recipe fits as it stands; None: on none."""
    for world in valid_worlds(recipe):
        needed = memory(recipe, layout, world, micro_pairs(recipe, world), accumulation(recipe, world))
        if needed.fits(device.memory):
            return world
    return None


def _stage(
    recipe: Recipe, layout: Layout, cluster: Cluster, pairs: int, times: int, network: Network
) -> Stage:
    world, card = cluster.world, cluster.device.memory
    needed = memory(recipe, layout, world, pairs, times)
    sent = traffic(recipe, layout, world, pairs, times)
    return Stage(
        layout.name,
        needed,
        host_memory(recipe, layout, world, pairs, times),
        needed.fits(card),
        largest_micro_batch(recipe, layout, world, card),
        sent,
        sent.seconds(network),
    )


def _recomputation(
    recipe: Recipe, layout: Layout, cluster: Cluster, pairs: int, times: int, mode: Mode
) -> Recomputation:
    engine = recipe.engine.model_copy(update={"activation_checkpointing": mode})
    other = recipe.model_copy(update={"engine": engine})
    needed = memory(other, layout, cluster.world, pairs, times)
    largest = largest_micro_batch(other, layout, cluster.world, cluster.device.memory)
    kept = needed.activations + needed.recomputed + needed.weight_copies
    return Recomputation(mode, kept, needed.total, needed.fits(cluster.device.memory), largest)


def _check_room(device: Device, stages: tuple[Stage, ...], modes: tuple[Recomputation, ...]) -> None:
    roomy = [stage.largest_micro_batch for stage in stages] + [mode.largest_micro_batch for mode in modes]
    if any(roomy):
        return
    least = min(*(stage.memory.total for stage in stages), *(mode.total for mode in modes))
    raise RecipeError(
        f"no ZeRO stage and no recomputation fits on a {device.name} of {device.memory / 1e9:.0f} GB: the "
        f"least needs {least / 1e9:.1f} GB",
        "a card with more memory, a smaller step on each GPU, or a smaller model",
        "Raise --nodes or --gpus, lower batch.global_pairs, or name another --gpu",
    )


def speed_of(recipe: Recipe, cluster: Cluster, mfu: float, traffic_seconds: float) -> Speed:
    """Returns step and hours: model FLOPs / (N x peak x MFU), or the network's time where it is longer."""
    a_pair = flops.train_flops(recipe)
    computing = recipe.batch.global_pairs * a_pair / (cluster.world * cluster.device.peak_flops * mfu)
    step = max(computing, traffic_seconds)
    hours = recipe.schedule.steps * step / HOUR
    return Speed(
        a_pair,
        step,
        recipe.batch.global_pairs / step,
        hours,
        hours * cluster.world,
        traffic_seconds > computing,
    )


def data_needs(recipe: Recipe, speed: Speed, world: int, assumed: Assumptions) -> DataNeeds:
    """Returns what a GPU eats a second; what ITM fetches from the queue is decoded too."""
    an_image = 1 / recipe.data.captions_per_image + fetches_negatives(recipe)
    images = speed.pairs_per_second / world * an_image
    if isinstance(recipe.model, SemVLPModel):
        return DataNeeds(images, images * sum(image_bytes(recipe)) / 1e6, 0.0, recipe.data.workers)
    megabytes = None if assumed.row_bytes is None else images * assumed.row_bytes / 1e6
    return DataNeeds(images, megabytes, images / assumed.images_per_cpu_second, recipe.data.workers)


def to_json(found: Plan) -> dict[str, Any]:
    """Returns the plan as JSON; bytes, seconds and shares as they are."""
    tables = asdict(found)
    for stage, table in zip(found.stages, tables["stages"], strict=True):
        for key in ("memory", "host", "traffic"):
            table[key]["total"] = getattr(stage, key).total
    return {**tables, "recipe": config.dump(found.recipe), "digest": config.digest(found.recipe)}
