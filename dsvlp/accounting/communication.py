"""What a step sends, by ZeRO stage: bytes through each GPU, and the time at a stated bandwidth.

A ring moves 2 (N - 1) / N times a buffer through each GPU to sum it everywhere, and half of that to
gather or to scatter it (Patarin and Yuan, 2009). Over nodes the ring crosses each node's network once,
so the slower of link and network sets its pace. Latency is not counted, nor what hides behind computing.

Legend: psi parameters, N processes, P pairs of a micro-batch, A micro-batches of a step, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from dsvlp.accounting import flops
from dsvlp.accounting.activations import prefix_numbers
from dsvlp.accounting.layout import Layout
from dsvlp.accounting.memory import FP32
from dsvlp.recipe import Recipe

BF16 = 2


@dataclass(frozen=True)
class Network:
    """Bandwidths, bytes/s in one direction.

    Attributes:
        link: of a GPU to the others of its node.
        node: of a node to the others; None where there is one.
    """

    link: float
    node: float | None = None

    @property
    def pace(self) -> float:
        """Bytes/s of a ring through all GPUs."""
        return self.link if self.node is None else min(self.link, self.node)


@dataclass(frozen=True)
class Traffic:
    """Bytes that each GPU sends in a step (and receives as many).

    Attributes:
        reduced: all-reduce of gradients, or their reduce-scatter in stage 3.
        gathered: all-gather of updated or partitioned parameters.
        features: ITC's features of all ranks, forth and back, and the queue's.
        prefixes: of gathered hard negatives, forth and back.
    """

    reduced: float
    gathered: float
    features: float
    prefixes: float

    @property
    def total(self) -> float:
        """The sum."""
        return float(sum(getattr(self, field.name) for field in fields(self)))

    def seconds(self, network: Network) -> float:
        """Returns how long a ring takes for it, nothing hidden."""
        return self.total / network.pace


def traffic(recipe: Recipe, layout: Layout, world: int, pairs: int, accumulation: int) -> Traffic:
    """Returns what a step sends.

    As DeepSpeed 0.19 does it, in fp32: stages 0 and 1 all-reduce once a step, stage 2 at each micro-batch
    (its "reduce-scatter" is an all-reduce of which a rank keeps its share), stages 1 and 2 gather the
    weights once; stage 3 scatters gradients and gathers weights at each micro-batch, twice where they do
    not stay from forward to backward.
    """
    once = (world - 1) / world
    numbers = flops.parameters(recipe)
    whole = FP32 * numbers * once
    if layout.stage == 3:
        gathers = 1 if layout.gathered(numbers) >= numbers else 2
        reduced, gathered = accumulation * whole, gathers * accumulation * whole
    else:
        reduced = 2 * whole * (accumulation if layout.stage == 2 else 1)
        gathered = whole if layout.stage else 0.0
    return Traffic(
        reduced,
        gathered,
        once * _features(recipe, world, pairs, accumulation),
        once * _prefixes(recipe, world, pairs, accumulation),
    )


def _features(recipe: Recipe, world: int, pairs: int, accumulation: int) -> float:
    """Returns the buffers of ITC's features: gathered forth, scattered back, and gathered for the queue."""
    itc = recipe.objectives.itc
    if itc is None:
        return 0.0
    vectors = FP32 * world * pairs * accumulation * 2 * recipe.model.text.width
    contrast = 2 * vectors if recipe.batch.contrastive_pairs is not None else 0.0
    return contrast + (vectors if itc.queue else 0.0)


def _prefixes(recipe: Recipe, world: int, pairs: int, accumulation: int) -> float:
    """Returns the buffers of gathered prefixes: forth in the step's precision, back in fp32."""
    itm = recipe.objectives.itm
    if itm is None or itm.negatives != "gathered":
        return 0.0
    forth = BF16 if recipe.engine.precision == "bf16" else FP32
    return float(forth + FP32) * world * pairs * accumulation * prefix_numbers(recipe)
