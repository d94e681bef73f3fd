"""What is refused before a job waits in a queue: folder, recipe and cluster, each by what would go wrong.

Slurm takes many jobs that can never start, and lets them pend for ever; a job that starts and then
finds its folder or batch wrong has waited in vain. All of this is known on the login node.
"""

from __future__ import annotations

import difflib
import getpass
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from dsvlp import config, slurm
from dsvlp import recipe as recipes
from dsvlp.accounting import flops, hardware
from dsvlp.data import manifest
from dsvlp.data.answers import Place, check_shared, table_beside
from dsvlp.data.features import manifest as features
from dsvlp.engine import dsconfig, exported
from dsvlp.errors import MissingDependency, RunError, SlurmError
from dsvlp.files import read_json, read_lines
from dsvlp.launch.sbatch import Resources
from dsvlp.recipe import Recipe, SemVLPModel
from dsvlp.recipe.changes import compare
from dsvlp.slurm import Partition

log = logging.getLogger(__name__)


def check_run(folder: Path, recipe: Recipe, override: bool) -> None:
    """Checks that a run may go on, or begin, in a folder.

    Raises:
        RecipeError, CheckpointError: the recipe's `start` is no export of its model.
        RunError: it cannot be written, holds something else or another recipe's run, or is in the queue.
    """
    check_writable(folder)
    has_trained = any((folder / "checkpoints").glob("step-*"))
    if not has_trained:  # a run that goes on has its own weights
        exported.start_of(recipe)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / "recipe.json").exists():
        raise RunError(
            f"{folder} holds files but no run (no recipe.json)",
            "a new, an empty or a run's folder",
            "Choose another",
        )
    _, binding = compare(read_json(folder / "recipe.json", "`dsvlp train --run`"), config.dump(recipe))
    if binding and not override and has_trained:
        raise RunError(
            f"{folder} holds a run of another recipe: {'; '.join(binding)}",
            "the run's own recipe (workers, intervals and layout may differ)",
            "Choose another --run folder, or add --override to go on with the new values",
        )
    submitted = folder / "slurm" / "submitted.json"
    if submitted.exists() and slurm.is_available():
        job = read_json(submitted, "`dsvlp submit`")["job"]
        state = slurm.job_state(job)
        if state is not None and state not in slurm.ENDED:
            raise RunError(
                f"{folder} is submitted already: job {job}, {state.lower()}",
                "a run that is not in the queue",
                f"Wait for it, or `scancel {job}`",
            )


def check_writable(folder: Path) -> None:
    """Raises `RunError` where a folder could not be made or written."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise RunError(f"{nearest} is a file", "a folder", "Choose another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RunError(
            f"{nearest} cannot be written by this user", "a folder of yours", "Choose another place"
        )


def make_folder(folder: Path) -> None:
    """Makes a folder with its parents; raises `RunError` where the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be made: {error.strerror}", "a folder of yours", "Choose another place"
        ) from error


def check_recipe(recipe: Recipe, resources: Resources, folder: Path | None = None) -> None:
    """Checks that a recipe names its data, and fits the processes and the time limit.

    Args:
        recipe: the resolved recipe.
        resources: what is asked for.
        folder: of a run that may have trained already: its measured steps count, not a bound.

    Raises:
        RecipeError: it names no data. Or the processes do not divide the batch; names the numbers that do.
            Or the layout is wrong, or not for `engine.compile`.
        DataError: region features that it names are absent or damaged, or not of its data and model; or its
            data have no answers for objectives.qa, or not one table of them.
        RunError: not one checkpoint would be written within the time limit.
    """
    recipe.data.check_named()
    recipes.accumulation(recipe, resources.world)
    check_features(recipe)
    check_answers(recipe)
    dsconfig.layout_of(recipe)
    steps = min(recipe.checkpoint.every_steps, recipe.schedule.steps)
    seconds, source = step_seconds(recipe, resources.world, folder)
    if steps * seconds > resources.minutes * 60:
        fit = int(resources.minutes * 60 / seconds)
        raise RunError(
            f"a checkpoint comes every {steps} steps, {steps * seconds / 3600:.2g} h {source}; "
            f"the time limit is {resources.hours:g} h",
            "a time limit longer than a checkpoint interval",
            f"Set checkpoint.every_steps to {max(1, fit // 4)} or less, or ask for more hours",
        )


def check_features(recipe: Recipe) -> None:
    """Checks that the region features that a recipe names are there, whole, its data sets' and its model's.

    Raises:
        DataError: names the folder, and what it is not.
    """
    data, model, mop = recipe.data, recipe.model, recipe.objectives.mop
    named = [(source.path, source.features) for source in data.train]
    if data.validation is not None:
        named.append((data.validation, data.validation_features))
    for path, place in named:
        if place is None:
            continue
        folder, dataset = Path(place), Path(path)
        found = features.load(folder)
        found.check_belongs(folder, dataset, manifest.load(dataset).to_json()["digest"])
        if isinstance(model, SemVLPModel):
            found.check_fits(folder, model.objects, model.feature_width, mop.classes if mop else None)


def check_answers(recipe: Recipe) -> None:
    """Checks that the data that a recipe names have answers of one table, where answers are trained.

    Raises:
        DataError: names the data sets that do not agree.
    """
    data = recipe.data
    if recipe.objectives.qa is not None and data.train:
        held_out = _answers(data.validation) if data.validation is not None else None
        check_shared([_answers(source.path) for source in data.train], held_out)


def _answers(path: str) -> Place:
    folder = Path(path)
    return folder, table_beside(folder, manifest.load(folder))


def step_seconds(recipe: Recipe, world: int, folder: Path | None) -> tuple[float, str]:
    """Returns (seconds of a step, how that is known): this run's own, or what no GPU would beat."""
    name = "speed/seconds_per_step"
    lines = read_lines(folder / "metrics.jsonl") if folder is not None else []
    measured = [line[name] for line in lines if isinstance(line.get(name), float)]
    if measured:
        return measured[-1], "at the run's last speed"
    fastest = max(hardware.DEVICES, key=lambda device: device.peak_flops)
    work = flops.train_flops(recipe) * recipe.batch.global_pairs
    return work / world / fastest.peak_flops, f"at the peak of {world} {fastest.name}"


def check_cluster(resources: Resources) -> None:
    """Checks that the cluster has what is asked for. Warns where it keeps no accounts.

    Raises:
        MissingDependency: there is no Slurm here.
        RunError: partition or account do not exist, or there are not so many nodes, GPUs or hours.
    """
    if not slurm.is_available():
        raise MissingDependency(
            "Slurm's commands (sbatch, squeue, scontrol) are not on this machine",
            "a login node of a Slurm cluster",
            "Log in there; tools/mini_slurm.sh starts a cluster to try things out",
        )
    check_partition(resources, slurm.partitions())
    try:
        check_account(resources.account, slurm.accounts(getpass.getuser()))
    except SlurmError as error:
        log.warning(
            "Slurm keeps no accounts here (%s): `dsvlp hours` counts from the runs' ledgers", error.found
        )


def check_partition(resources: Resources, partitions: Sequence[Partition]) -> None:
    """Raises `RunError` where a partition is absent, or too small or too short for what is asked for."""
    wanted = resources.partition
    for found in partitions:
        if found.name == wanted or (wanted is None and found.is_default):
            break
    else:
        names = [partition.name for partition in partitions]
        near = difflib.get_close_matches(wanted or "", names, 1)
        raise RunError(
            f"there is no partition {wanted!r}" if wanted else "the cluster has no default partition",
            f"one of {', '.join(names)}",
            f"Did you mean {near[0]!r}?" if near else "Name one with --partition",
        )
    if found.nodes_with(resources.gpus) < resources.nodes:
        have = ", ".join(f"{nodes} with {gpus}" for gpus, nodes in found.nodes_by_gpus)
        raise RunError(
            f"{resources.nodes} nodes with {resources.gpus} GPUs each are asked of partition {found.name!r}",
            f"no more than there are: by GPUs a node, {have}",
            "Ask for fewer, or for another --partition: the job would wait for ever",
        )
    limit = found.time_limit_minutes
    if limit is not None and resources.minutes > limit:
        raise RunError(
            f"{resources.hours:g} h are asked of partition {found.name!r}",
            f"at most its limit, {limit / 60:g} h",
            "Ask for less: the run is started again after each time limit until it is done",
        )


def check_account(account: str | None, accounts: Sequence[str]) -> None:
    """Raises `RunError` where the user may not charge an account; a user with none at all is for sbatch."""
    if account is None or not accounts or account in accounts:
        return
    raise RunError(
        f"this user may not charge the account {account!r}",
        f"one of {', '.join(accounts)}",
        "Name one of them",
    )
