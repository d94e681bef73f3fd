"""A plan as tables that people read: memory, traffic, time, saves, data; and what must be changed."""

from __future__ import annotations

from collections.abc import Iterator

from dsvlp import catalog
from dsvlp.accounting.memory import RESERVE
from dsvlp.accounting.plan import HOUR, Plan
from dsvlp.reports import table

GB = 1e9
_NEAR = 9  # valid numbers of GPUs that are printed


def lines(plan: Plan) -> Iterator[str]:
    """Yields the lines to print."""
    yield from _what(plan)
    for title, part in (
        ("GB on a GPU, by ZeRO layout", _memory(plan)),
        (f"GB kept from forward to backward in {plan.recipe.engine.zero}, by recomputation", _modes(plan)),
        ("GB that each GPU sends in a step", _traffic(plan)),
        ("time", _time(plan)),
        ("saving", _saving(plan)),
        ("data", _data(plan)),
    ):
        yield f"\n{title}"
        yield part
    yield "\nArithmetic, not a measurement" + _sources(plan)
    yield from (f"! {text}" for text in problems(plan))


def problems(plan: Plan) -> list[str]:
    """Returns a sentence for each thing with which the run would not work or not work well."""
    out, stage, recipe = [], plan.stage, plan.recipe
    if not stage.fits:
        out.append(
            f"{stage.name} needs {stage.memory.total / GB:.1f} GB of {_room(plan):.1f} with a micro-batch of "
            f"{plan.pairs}: choose {', or '.join(_ways(plan))}"
        )
    if plan.speed.bound_by_network:
        out.append(f"the network needs longer than the GPUs: {stage.traffic_seconds:.3g} s a step")
    if plan.data.cores > plan.data.threads:
        out.append(
            f"each GPU needs {plan.data.cores:.1f} cores to decode, data.workers is {recipe.data.workers}"
        )
    if plan.checkpointing.lost_share > 0.05:
        out.append(
            f"saving every {plan.checkpointing.steps} steps loses {plan.checkpointing.lost_share:.0%} of the "
            f"time; checkpoint.every_steps={plan.checkpointing.daly_steps} loses "
            f"{plan.checkpointing.least_lost_share:.0%}"
        )
    return out


def _ways(plan: Plan) -> list[str]:
    """Returns what would fit, the least change first."""
    batch, world = plan.recipe.batch, plan.cluster.world
    ways = [f"engine.activation_checkpointing={mode.mode}" for mode in plan.recomputation if mode.fits][:1]
    ways += [f"engine.zero={stage.name}" for stage in plan.stages if stage.fits][:1]
    for stage in sorted(plan.stages, key=lambda stage: stage is not plan.stage):
        if not ways and not plan.least_world and stage.largest_micro_batch:
            pairs = stage.largest_micro_batch
            key = (
                f"micro_pairs={pairs}"
                if batch.contrastive_pairs is None
                else f"contrastive_pairs={pairs * world}"
            )
            ways.append(f"engine.zero={stage.name} with batch.{key} or less")
    if plan.least_world is not None:
        ways.append(f"{plan.least_world} GPUs")
    return ways or ["more GPUs, or recomputation and a smaller micro-batch together"]


def _what(plan: Plan) -> Iterator[str]:
    recipe, cluster = plan.recipe, plan.cluster
    yield recipe.description
    yield (
        f"{plan.parameters / 1e6:.1f} M parameters, {recipe.schedule.steps:,} steps of "
        f"{recipe.batch.global_pairs:,} pairs on {cluster.nodes} x {cluster.gpus} {cluster.device.name}: "
        f"micro-batches of {plan.pairs}, {plan.accumulation} a step on each"
    )
    yield from catalog.notes(recipe)
    near = sorted(sorted(plan.worlds, key=lambda world: abs(world - cluster.world))[:_NEAR])
    more = f", {len(plan.worlds)} in all" if len(plan.worlds) > len(near) else ""
    yield f"numbers of GPUs that share this batch: {', '.join(map(str, near))}{more}"


def _room(plan: Plan) -> float:
    return (1 - RESERVE) * plan.cluster.device.memory / GB


def _memory(plan: Plan) -> str:
    head = ["", *(stage.name for stage in plan.stages)]
    of = [stage.memory for stage in plan.stages]
    rows: list[list[table.Cell]] = [
        ["weights", *(m.parameters for m in of)],
        ["masters (own share)", *(m.masters for m in of)],
        ["AdamW's moments", *(m.moments for m in of)],
        ["gradients", *(m.gradients for m in of)],
        ["reduction buckets", *(m.buckets for m in of)],
        ["activations", *(m.activations + m.recomputed for m in of)],
        ["bf16 copies of weights", *(m.weight_copies for m in of)],
        ["gathered prefixes", *(m.prefixes for m in of)],
        ["ITC's queue", *(m.queue for m in of)],
        ["the step's batches", *(m.batches for m in of)],
        ["sum", *(m.total for m in of)],
    ]
    shown = [[row[0], *(_gb(cell) for cell in row[1:])] for row in rows if any(row[1:])]
    shown.append(
        [f"fits in {_room(plan):.0f} ({1 - RESERVE:.0%} of the card)", *(_yes(s.fits) for s in plan.stages)]
    )
    shown.append(["largest micro-batch, pairs", *(f"{s.largest_micro_batch:,}" for s in plan.stages)])
    host = [s.host.total * plan.cluster.gpus for s in plan.stages]
    shown.append(["host memory of a node", *(_gb(h) for h in host)])
    return table.text(head, shown)


def _modes(plan: Plan) -> str:
    head = ["", *(mode.mode for mode in plan.recomputation)]
    return table.text(
        head,
        [
            ["activations, weight copies", *(_gb(mode.activations) for mode in plan.recomputation)],
            ["sum of all", *(_gb(mode.total) for mode in plan.recomputation)],
            ["fits", *(_yes(mode.fits) for mode in plan.recomputation)],
            ["largest micro-batch, pairs", *(f"{m.largest_micro_batch:,}" for m in plan.recomputation)],
        ],
    )


def _traffic(plan: Plan) -> str:
    of = [stage.traffic for stage in plan.stages]
    rows: list[list[table.Cell]] = [
        ["gradients", *(t.reduced for t in of)],
        ["weights", *(t.gathered for t in of)],
        ["ITC's features", *(t.features for t in of)],
        ["gathered prefixes", *(t.prefixes for t in of)],
        ["sum", *(t.total for t in of)],
    ]
    shown = [[row[0], *(_gb(cell) for cell in row[1:])] for row in rows if any(row[1:])]
    shown.append(["seconds, nothing hidden", *(f"{stage.traffic_seconds:.3g}" for stage in plan.stages)])
    return table.text(["", *(stage.name for stage in plan.stages)], shown or [["nothing", *("" for _ in of)]])


def _time(plan: Plan) -> str:
    speed, cluster, pairs = (
        plan.speed,
        plan.cluster,
        plan.recipe.batch.global_pairs * plan.recipe.schedule.steps,
    )
    rows: list[list[table.Cell]] = [
        ["model FLOPs a pair, forward and backward", "GFLOP", speed.flop_per_pair / 1e9],
        ["a step", "s", speed.step_seconds],
        ["pairs", "pairs/s", speed.pairs_per_second],
        ["the run", "h", speed.hours],
        ["the run", "GPU-h", speed.gpu_hours],
    ]
    if plan.allocations is not None:
        cut = plan.allocations
        rows.append([f"steps in {cut.time_limit_hours:g} h", "steps", cut.steps_each])
        rows.append(["requeues to the end", "", cut.requeues])
    if plan.paper is not None:
        paper = plan.paper
        rows.append([f"the paper's rate, {paper.source}", f"{paper.device}-h", paper.hours_for(pairs)])
        rows.append(["the paper's GPU-h for one of these", "times", paper.ratio(pairs, speed.gpu_hours)])
        adjusted = paper.peak_adjusted(pairs, speed.gpu_hours, cluster.device)
        rows.append(["the same, adjusted by the cards' peaks", "times", adjusted])
    return table.text(["", "unit", ""], rows)


def _saving(plan: Plan) -> str:
    saves, step = plan.checkpointing, plan.speed.step_seconds
    between = saves.between_interruptions_seconds
    rows: list[list[table.Cell]] = [
        ["a checkpoint", "GB", saves.bytes / GB],
        ["stall of a save (the copy to the host)", "s", saves.stall_seconds],
        [
            f"between interruptions of {plan.cluster.world} GPUs",
            "h",
            between / HOUR,
        ],
        ["least loss by Young", "steps", saves.young_steps],
        ["least loss by Daly", "steps", saves.daly_steps],
        ["lost at Daly's interval", "%", 100 * saves.least_lost_share],
        ["the recipe's interval", "steps", saves.steps],
        ["the recipe's interval", "h", saves.steps * step / HOUR],
        ["lost at the recipe's interval", "%", 100 * saves.lost_share],
    ]
    return table.text(["", "unit", ""], rows)


def _data(plan: Plan) -> str:
    data, ahead = plan.data, plan.stage.host.batches
    rows: list[list[table.Cell]] = [["images", "images/s a GPU", data.images_per_second]]
    if data.megabytes_per_second is not None:
        rows.append(["bytes", "MB/s a GPU", data.megabytes_per_second])
        rows.append(["bytes", "MB/s in all", data.megabytes_per_second * plan.cluster.world])
    if data.cores:
        rows.append(["cores that decode", "cores a GPU", data.cores])
    rows.append(["batches on the host, made ahead", "GB a GPU", ahead / GB])
    return table.text(["", "unit", ""], rows)


def _sources(plan: Plan) -> str:
    assumed, device = plan.assumptions, plan.cluster.device
    node = f", {assumed.network_gbit:g} Gbit/s a node" if plan.cluster.nodes > 1 else ""
    return (
        f": MFU {assumed.mfu:.1%} ({assumed.mfu_source}) of {device.peak_flops / 1e12:.0f} TFLOP/s; "
        f"{device.link / GB:.0f} GB/s a link{node}; an interruption every "
        f"{assumed.interruption_gpu_hours:,.0f} GPU-hours; {assumed.start_seconds:.0f} s to start; "
        f"{assumed.images_per_cpu_second:g} images a CPU-second; texts at full length."
    )


def _gb(value: table.Cell) -> str:
    assert isinstance(value, int | float)
    return f"{value / GB:.2f}" if value else "0"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
