"""Memory of a GPU and of its host, by formula: what ZeRO holds, what a micro-batch keeps, what batches take.

The states are those that DeepSpeed 0.19 allocates for `engine.zero`: parameters, masters, gradients and
moments are fp32 in every precision, because bf16 is autocast. ZeRO (Rajbhandari et al., 2020, section 3)
counts 2 + 2 + 12 bytes a parameter for mixed precision with bf16 weights; here it is 4 + 4 + 8, and
stages 1 and 2 keep their share of the masters a second time, beside the module's weights. A test holds
the states against what DeepSpeed holds on two processes, another the activations against autograd.

Legend: psi parameters, N processes, P pairs of a micro-batch, A micro-batches of a step.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod

from dsvlp import catalog
from dsvlp.accounting import activations, cnn, flops
from dsvlp.accounting.flops_pixelbert import picture
from dsvlp.accounting.flops_semvlp import BOX
from dsvlp.accounting.layout import STAGE_0_BUCKET, Layout
from dsvlp.recipe import CNN, PixelBERTModel, Recipe, ResNet, SemVLPModel, fetches_negatives
from dsvlp.types import DataFacts

FP32, FP16 = 4, 2
MOMENTS = 2  # AdamW's
RESERVE = 0.10  # share of a card for the CUDA context, NCCL and fragmentation: an assumption
PROCESS = 0.45 * 2**30  # bytes of a process with torch and the loader before the model; measured on a CPU
IDLE_BUFFERS = 8  # that the loader keeps for further batches, `data.pictures`
INT64 = 8
_ANY_SIDE = 64  # pixels; a trunk has the same parameters for all


@dataclass(frozen=True)
class States:
    """Bytes of what ZeRO holds on one GPU.

    Attributes:
        parameters: the module's weights; in stage 3 this rank's share and those that are gathered.
        masters: this rank's share of the fp32 masters, where they lie beside the weights.
        moments: AdamW's two, SGD's one.
        gradients: at the end of a step's last backward.
        buckets: buffers of the reduction.
        host: what is offloaded.
        between: of all this, what stays on the GPU between two steps.
    """

    parameters: float
    masters: float
    moments: float
    gradients: float
    buckets: float
    host: float = 0.0
    between: float = 0.0

    @property
    def total(self) -> float:
        """Bytes on the GPU at the end of the backward."""
        return self.parameters + self.masters + self.moments + self.gradients + self.buckets


def states(
    numbers: int, layout: Layout, world: int, accumulation: int = 1, *, moments: float = MOMENTS
) -> States:
    """Returns what ZeRO holds of a model of `numbers` parameters, as DeepSpeed 0.19 allocates it in fp32.

    Stage 0: weights, gradients and moments whole; the all-reduce copies its bucket. Stage 1: whole
    gradients but for those that have moved to the bucket, and the reduced ones of this rank's share beside
    them. Stage 2: the share alone, twice where micro-batches accumulate. Stages 1 and 2 fill their buckets
    and flatten one more for the all-reduce. Stage 3: weights and masters are two copies of the share
    (DeepSpeed means them to be one, but compares a device with its name); a bucket and the copy of the
    reduce-scatter. Offloaded, masters, moments and gradients (twice) lie in the host's memory.

    Args:
        numbers: psi.
        layout: the ZeRO stage.
        world: N.
        accumulation: A.
        moments: that the optimizer keeps of a parameter, on average.
    """
    whole, share = FP32 * numbers, FP32 * numbers / world
    bucket = FP32 * layout.bucket
    if layout.stage == 0:
        copied = FP32 * min(numbers, STAGE_0_BUCKET) if world > 1 else 0
        return States(whole, 0, moments * whole, whole, copied, between=(1 + moments) * whole)
    if layout.stage == 3:
        gathered = FP32 * layout.gathered(numbers) if world > 1 else 0
        reduction = bucket + min(bucket, whole)
        if layout.offload:
            return States(share + gathered, 0, 0, 0, reduction, (3 + moments) * share, share + bucket)
        between = (3 + moments) * share + bucket
        return States(share + gathered, share, moments * share, share, reduction, between=between)
    buckets = (1 + layout.overlap) * bucket + min(bucket, whole)
    if layout.offload:
        return States(whole, 0, 0, 0, buckets, (3 + moments) * share, whole)
    if layout.stage == 1:
        gradients = whole - min(bucket, whole) + share
    else:
        gradients = share * (2 if accumulation > 1 else 1)
    between = whole + (1 + moments) * share
    return States(whole, share, moments * share, gradients, buckets, between=between)


def moments_each(recipe: Recipe, facts: DataFacts | None = None) -> float:
    """Returns how many moments a parameter has on average: AdamW's two, SGD's one of a CNN's."""
    image = getattr(recipe.model, "image", None)
    if recipe.optimizer.cnn is None or not isinstance(image, CNN | ResNet):
        return MOMENTS
    trunk, _ = cnn.trunk(image.name, (_ANY_SIDE, _ANY_SIDE))
    return MOMENTS - trunk.parameters / flops.parameters(recipe, facts)


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the most, by what they are for.

    The gradients of a step with one micro-batch grow while the activations go, so the sum is a little more
    than a peak; what a kernel needs while it runs is not in it.
    """

    parameters: float
    masters: float
    moments: float
    gradients: float
    buckets: float
    activations: float
    recomputed: float
    weight_copies: float
    prefixes: float
    queue: float
    batches: float

    @property
    def total(self) -> float:
        """The sum."""
        return float(sum(getattr(self, field.name) for field in fields(self)))

    def fits(self, card: float) -> bool:
        """Returns whether a card of so many bytes has room, its reserve left out."""
        return self.total <= (1 - RESERVE) * card


def memory(
    recipe: Recipe,
    layout: Layout,
    world: int,
    pairs: int,
    accumulation: int,
    *,
    cpu: bool = False,
    facts: DataFacts | None = None,
) -> Memory:
    """Returns what a GPU needs.

    Args:
        recipe: the model, its objectives, precision and recomputation.
        layout: the ZeRO stage; it may be another than the recipe's.
        world: N.
        pairs: P.
        accumulation: A.
        cpu: as torch keeps activations on a CPU.
        facts: the data's label tables.
    """
    numbers = flops.parameters(recipe, facts)
    held = states(numbers, layout, world, accumulation, moments=moments_each(recipe, facts))
    kept = activations.of_micro_batch(recipe, pairs, cpu=cpu, facts=facts)
    return Memory(
        held.parameters,
        held.masters,
        held.moments,
        held.gradients,
        held.buckets,
        kept.kept,
        kept.recomputed,
        weight_copies(recipe, numbers),
        gathered_prefixes(recipe, pairs, world),
        queue(recipe),
        accumulation * batch(recipe, pairs),
    )


def weight_copies(recipe: Recipe, numbers: int) -> float:
    """Returns the bytes of autocast's bf16 copies of the weights of products, kept until the backward.

    A recomputed block's are not kept; embedding tables are read as they are.
    """
    if recipe.engine.precision != "bf16":
        return 0.0
    text = recipe.model.text
    kept = {"none": 1.0, "selective": 0.5, "full": 0.0}[recipe.engine.activation_checkpointing]
    return 2 * kept * (numbers - text.vocabulary * text.width)


def prefix_bytes(recipe: Recipe, pairs: int) -> float:
    """Returns the bytes of the image and text states below the fusion of so many pairs, in fp32."""
    return FP32 * pairs * activations.prefix_numbers(recipe)


def gathered_prefixes(recipe: Recipe, pairs: int, world: int) -> float:
    """Returns what gathered hard negatives take: all ranks' prefixes, and in the backward their gradients."""
    itm = recipe.objectives.itm
    if itm is None or itm.negatives != "gathered" or world == 1:
        return 0.0
    return 2 * prefix_bytes(recipe, pairs * world)


def queue(recipe: Recipe) -> float:
    """Returns the bytes of ITC's queue, its copy within a step, and ITM's pool: fp32 vectors and names.

    Negatives that are fetched at once need no pool.
    """
    itc, itm, width = recipe.objectives.itc, recipe.objectives.itm, recipe.model.text.width
    if itc is None:
        return 0.0
    row = 2 * (FP32 * width + INT64)
    delayed = itm is not None and itm.negatives_delay and fetches_negatives(recipe)
    pool = recipe.batch.global_pairs * row if delayed else 0
    return 2.0 * itc.queue * row + pool


def batch(recipe: Recipe, pairs: int) -> float:
    """Returns the bytes of a micro-batch as the loader makes it.

    Images are fp32, region features fp16, maps and ids int64. All micro-batches of a step lie on the GPU
    before its first forward.
    """
    images = pairs / recipe.data.captions_per_image
    fetched = pairs if fetches_negatives(recipe) else 0
    objectives = recipe.objectives
    masked = images if objectives.ssul is not None or objectives.mop is not None else 0
    texts = INT64 * recipe.model.text.max_length * (2 * pairs + 2 * fetched)
    seen, beside = image_bytes(recipe)
    return seen * (images + fetched + masked) + beside * images + texts


def image_bytes(recipe: Recipe) -> tuple[float, float]:
    """Returns the bytes of what a model reads of an image, and of what lies beside it: mask, map, labels."""
    table = recipe.model
    if isinstance(table, SemVLPModel):
        label = INT64 + FP32 + 1  # class, confidence, whether there is an object
        return FP16 * table.objects * (table.feature_width + BOX), label * table.objects
    if isinstance(table, PixelBERTModel):
        pixels = prod(picture(table))
        mask = pixels if table.longest_side is not None else 0
        return 3 * FP32 * pixels, mask
    pixels = table.image_size**2
    return 3 * FP32 * pixels, INT64 * pixels if "segmentation" in catalog.data_needs(recipe) else 0


@dataclass(frozen=True)
class HostMemory:
    """Bytes of one process in the host's memory.

    Attributes:
        process: Python, torch and the loader.
        model: the model, built whole before ZeRO takes it over.
        batches: those of the step, those made ahead, and the loader's idle buffers.
        offloaded: what ZeRO keeps here.
        checkpoint: the copy of this process's share that is being written.
    """

    process: float
    model: float
    batches: float
    offloaded: float
    checkpoint: float

    @property
    def total(self) -> float:
        """The sum."""
        return float(sum(getattr(self, field.name) for field in fields(self)))


def host_memory(
    recipe: Recipe, layout: Layout, world: int, pairs: int, accumulation: int, facts: DataFacts | None = None
) -> HostMemory:
    """Returns what one process needs of its host."""
    numbers = flops.parameters(recipe, facts)
    ahead = accumulation + recipe.data.prefetch + 2 + IDLE_BUFFERS
    return HostMemory(
        PROCESS,
        FP32 * numbers,
        ahead * batch(recipe, pairs),
        states(numbers, layout, world, accumulation, moments=moments_each(recipe, facts)).host,
        checkpoint_bytes(recipe, facts) / world,
    )


def checkpoint_bytes(recipe: Recipe, facts: DataFacts | None = None) -> float:
    """Returns the bytes of a checkpoint: fp32 masters, their moments, the queue and the pool."""
    itc = recipe.objectives.itc
    state = (1 + moments_each(recipe, facts)) * FP32 * flops.parameters(recipe, facts)
    copied = 0 if itc is None else itc.queue * 2 * (FP32 * recipe.model.text.width + INT64)
    return state + queue(recipe) - copied


def largest_micro_batch(
    recipe: Recipe, layout: Layout, world: int, card: float, facts: DataFacts | None = None
) -> int:
    """Returns the most pairs of a micro-batch for which a card has room; 0: none. The step stays the same."""
    group, a_step = recipe.data.captions_per_image, recipe.batch.global_pairs // world

    def fits(groups: int) -> bool:
        pairs = groups * group
        needed = memory(recipe, layout, world, pairs, max(1, -(-a_step // pairs)), facts=facts)
        return needed.fits(card)

    low, high = 0, max(1, a_step // group)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low * group
