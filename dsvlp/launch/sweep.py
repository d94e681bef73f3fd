"""Many runs of one recipe as a Slurm array: submitted, and the failed ones submitted again. Torch-free.

    from dsvlp.launch import sweep

    members = sweep.grid({"optimizer.lr": [3e-4, 1e-3], "seed": [0, 1]})
    sweep.submit("tiny_svl", members, Path("sweeps/lr"), sweep.Resources(gpus=1, hours=0.5), at_once=2)

Each member is a run in a folder of its own; `dsvlp sweep status FOLDER` shows them as a table,
`tensorboard --logdir FOLDER/members` their curves and, in HParams, values beside results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from dsvlp import config
from dsvlp import recipe as recipes
from dsvlp.errors import RecipeError, RunError
from dsvlp.files import write_json
from dsvlp.launch import budget, executor, members, preflight, progress, snapshot, sweep_folder
from dsvlp.launch.members import drawn, grid, log_uniform, uniform
from dsvlp.launch.sbatch import Job, Resources
from dsvlp.launch.submit import MAX_RESTARTS, data_folders
from dsvlp.launch.sweep_folder import Member, Submission, Sweep
from dsvlp.recipe import Recipe

__all__ = ["Resources", "drawn", "grid", "log_uniform", "retry", "submit", "uniform"]


def submit(
    name: str,
    chosen: Sequence[members.Member],
    folder: Path,
    resources: Resources,
    *,
    overrides: Sequence[str] = (),
    at_once: int = 8,
    max_restarts: int = MAX_RESTARTS,
    budget_gpu_hours: float | None = None,
    over_budget: Literal["refuse", "stop"] = "refuse",
) -> Sweep:
    """Submits a sweep. Nothing is written or submitted unless every member's recipe is right.

    Args:
        name: a shipped recipe or a `.toml` file.
        chosen: the members, recipe key -> value: `grid`, `drawn`, or a list of your own.
        folder: the sweep's folder, new, on a file system that all nodes see.
        resources: of each member.
        overrides: `key=value` texts for all members.
        at_once: members that run at the same time.
        max_restarts: how often a failed member is started again by itself.
        budget_gpu_hours: of the whole sweep; None: no limit.
        over_budget: "refuse" a sweep whose members could pass the budget, or "stop" it, by cancelling what
            has not started, once it is reached.

    Raises:
        RecipeError: a member's recipe is wrong, or equal to another's.
        RunError: the cluster cannot give this, the budget is too small, or the folder holds something.
        MissingDependency: there is no Slurm here.
        SlurmError: sbatch refuses.
    """
    folder = folder.resolve()
    preflight.check_cluster(resources)
    if folder.exists() and any(folder.iterdir()):
        raise RunError(
            f"{folder} is not empty", "a new folder", "`dsvlp sweep retry` goes on with a sweep there"
        )
    resolved = resolve(name, overrides, chosen)
    for recipe in resolved:
        preflight.check_recipe(recipe, resources)
    if over_budget == "refuse":
        budget.check(len(resolved), resources, 0.0, budget_gpu_hours)
    preflight.make_folder(folder)
    code = snapshot.take(folder / "code").name
    mounts = sorted({str(path) for recipe in resolved for path in data_folders(recipe)})
    named = _members(chosen, resolved)
    limits = (at_once, max_restarts, budget_gpu_hours)
    sweep = Sweep(folder, name, resources, named, *limits, code, str(Path.cwd()), mounts)
    for member, recipe in zip(named, resolved, strict=True):
        preflight.make_folder(sweep.run(member))
        write_json(sweep.run(member) / "recipe.json", config.dump(recipe))
    return _start(sweep, named)


def retry(folder: Path, budget_gpu_hours: float | None = None) -> Sweep:
    """Submits the members again that neither finished nor wait nor run; touches no other.

    They run the sweep's own code and go on from their newest checkpoints.

    Args:
        folder: the sweep's folder.
        budget_gpu_hours: a new budget; None: the old one.

    Raises:
        RunError: there is no such member, or the budget does not allow for them.
        MissingDependency, SlurmError: there is no Slurm, or it refuses.
    """
    sweep = sweep_folder.read(folder)
    preflight.check_cluster(sweep.resources)
    if budget_gpu_hours is not None:
        sweep = replace(sweep, budget_gpu_hours=budget_gpu_hours)
    told = progress.read(sweep)
    again = [each.member for each in told if each.state in progress.OVER_AND_UNFINISHED]
    if not again:
        states = ", ".join(sorted({each.state for each in told}))
        raise RunError(f"no member of {folder} needs a new start: all are {states}", "one that failed")
    spent = sum(each.gpu_hours for each in told)
    budget.check(len(again), sweep.resources, spent, sweep.budget_gpu_hours)
    (sweep.folder / budget.NOTE).unlink(missing_ok=True)
    return _start(sweep, again)


def resolve(name: str, overrides: Sequence[str], chosen: Sequence[members.Member]) -> list[Recipe]:
    """Returns the members' recipes, in order; raises `RecipeError` that names a wrong or repeated member."""
    if not chosen:
        raise RecipeError("the sweep has no members", "at least one")
    out: list[Recipe] = []
    seen: dict[str, int] = {}
    for index, values in enumerate(chosen):
        try:
            recipe = recipes.load(name, [*overrides, *members.overrides(values)])
        except RecipeError as error:
            raise RecipeError(
                f"member {index} {dict(values)}: {error.found}", error.expected, error.fix
            ) from error
        twin = seen.setdefault(config.digest(recipe), index)
        if twin != index:
            raise RecipeError(
                f"members {twin} and {index} are the same run: {dict(values)}", "different members"
            )
        out.append(recipe)
    return out


def _members(chosen: Sequence[members.Member], resolved: Sequence[Recipe]) -> list[Member]:
    """Returns the members under names that tell number and recipe."""
    return [
        Member(index, dict(values), f"{index:03d}-{config.digest(recipe)}")
        for index, (values, recipe) in enumerate(zip(chosen, resolved, strict=True))
    ]


def _start(sweep: Sweep, chosen: Sequence[Member]) -> Sweep:
    """Returns the sweep with a new submission of some members."""
    sweep.write()  # a member that starts at once reads it
    job = Job(
        name=sweep.folder.name,
        runs=tuple(sweep.run(member) for member in chosen),
        code=sweep.folder / "code" / sweep.code,
        folder=sweep.folder / "slurm",
        resources=sweep.resources,
        max_restarts=sweep.max_restarts,
        at_once=sweep.at_once,
        sweep=sweep.folder,
        mounts=tuple(map(Path, sweep.mounts)),
        directory=Path(sweep.directory),
    )
    number = executor.submit(job)
    started = Submission(number, [member.index for member in chosen])
    sweep = replace(sweep, submissions=[*sweep.submissions, started])
    sweep.write()
    return sweep
