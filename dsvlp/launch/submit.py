"""One run as a Slurm job: checked here, on the login node, then handed over with its code and recipe.

    from dsvlp.launch.submit import Resources, submit

    submitted = submit("pretrain_svl", ["optimizer.lr=1e-4"], Resources(nodes=4, gpus=8, hours=24))
    print(submitted.job, submitted.run)

The run's folder gets `recipe.json`, a copy of the code in `code/`, and scripts, logs and pickles in
`slurm/`. Whatever ends the job before the last step, it is started again and goes on from its newest
checkpoint. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsvlp import config
from dsvlp import recipe as recipes
from dsvlp.files import write_json
from dsvlp.launch import executor, local, preflight, snapshot
from dsvlp.launch.sbatch import Job, Resources
from dsvlp.recipe import Recipe

__all__ = ["MAX_RESTARTS", "Resources", "Submitted", "prepare", "submit"]

MAX_RESTARTS = 20


@dataclass(frozen=True)
class Submitted:
    """A job that Slurm has taken.

    Attributes:
        job: Slurm's number.
        run: the run's folder.
        log: where the first rank's output will stand.
    """

    job: str
    run: Path
    log: Path


def submit(
    name: str,
    overrides: Sequence[str] = (),
    resources: Resources = Resources(),
    *,
    run: Path | None = None,
    max_restarts: int = MAX_RESTARTS,
    override: bool = False,
) -> Submitted:
    """Submits a recipe as one job, or goes on with the run that lies in `run`.

    Args:
        name: a shipped recipe or a `.toml` file.
        overrides: `key=value` texts.
        resources: what the job asks for.
        run: the run's folder, on a file system that all nodes see; None: a new one in `runs/`.
        max_restarts: how often a failed run is started again; stops on request do not count.
        override: go on although the folder's recipe differs in what binds.

    Raises:
        RecipeError: the recipe is wrong, or the processes do not divide its batch; names the valid ones.
        RunError: the cluster cannot give this, the time is too short, or the folder is not free.
        MissingDependency: there is no Slurm here.
        SlurmError: sbatch refuses.
    """
    preflight.check_cluster(resources)
    recipe, job = prepare(name, overrides, resources, run=run, max_restarts=max_restarts, override=override)
    (folder,) = job.runs
    preflight.make_folder(folder)
    write_json(folder / "recipe.json", config.dump(recipe))
    snapshot.take(folder / "code")
    number = executor.submit(job)
    write_json(folder / "slurm" / "submitted.json", {"job": number})
    return Submitted(number, folder, job.folder / f"{number}_0_log.out")


def prepare(
    name: str,
    overrides: Sequence[str],
    resources: Resources,
    *,
    run: Path | None = None,
    max_restarts: int = MAX_RESTARTS,
    override: bool = False,
) -> tuple[Recipe, Job]:
    """Returns the resolved recipe and the job that `submit` would hand over; writes nothing.

    All is checked but the cluster, so that a script can be looked at elsewhere.
    """
    recipe = recipes.load(name, list(overrides))
    folder = (run or local.new_run(name, recipe)).resolve()
    preflight.check_run(folder, recipe, override)
    preflight.check_recipe(recipe, resources, folder)
    code = snapshot.place(folder / "code")
    return recipe, Job(
        name=folder.name,
        runs=(folder,),
        code=code,
        folder=folder / "slurm",
        resources=resources,
        max_restarts=max_restarts,
        mounts=data_folders(recipe),
    )


def data_folders(recipe: Recipe) -> tuple[Path, ...]:
    """Returns the folders that hold what a recipe reads beside the run's own."""
    data = recipe.data
    named = [path for source in data.train for path in (source.path, source.features)]
    named += [data.validation, data.validation_features, data.tokenizer, recipe.start]
    return tuple(sorted({Path(path).resolve().parent for path in named if path and Path(path).exists()}))
