"""The command line that runs a rank inside a container, as a pure function.

`KIND:IMAGE`, in one variable: `apptainer:dsvlp.sif` (or any URI that apptainer takes), `pyxis:dsvlp.sqsh`
(srun's own option, by NVIDIA's plugin), `enroot:dsvlp.sqsh` (enroot without the plugin). The container
brings Python, torch and dsvlp; the job's folders appear in it under the same paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dsvlp.errors import RunError

KINDS = ("apptainer", "enroot", "pyxis")
PASSED = ("SLURM_", "MASTER_", "DSVLP_", "NCCL_", "GLOO_", "CUDA_", "OMP_", "SUBMITIT_", "TORCH_", "PYTHON")
"""Beginnings of the variables that a rank needs; enroot passes only those that it is told of."""


def wrap(
    container: str, command: Sequence[str], mounts: Iterable[Path], directory: Path, names: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Returns (arguments for srun, the command that each task runs).

    Args:
        container: `KIND:IMAGE`.
        command: program and arguments, as inside the container.
        mounts: folders that are seen inside under their own paths.
        directory: the working directory, mounted too.
        names: the environment's variables; enroot gets those that begin as `PASSED`.

    Raises:
        RunError: no such kind, or no image.
    """
    kind, _, image = container.partition(":")
    if kind not in KINDS or not image:
        raise RunError(
            f"the container {container!r}",
            "KIND:IMAGE with one of apptainer, enroot, pyxis",
            "For example DSVLP_CONTAINER=apptainer:/images/dsvlp.sif",
        )
    folders = _outermost([*mounts, directory])
    pairs = [f"{folder}:{folder}" for folder in folders]
    if kind == "apptainer":
        inside = ["apptainer", "exec", "--nv", "--bind", ",".join(pairs), "--pwd", str(directory), image]
        return [], [*inside, *command]
    if kind == "pyxis":
        options = [f"--container-image={image}", f"--container-mounts={','.join(pairs)}"]
        return [*options, f"--container-workdir={directory}"], list(command)
    told = [part for name in sorted(names) if name.startswith(PASSED) for part in ("--env", name)]
    bound = [part for pair in pairs for part in ("--mount", pair)]
    # enroot has no option for the working directory.
    moved = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(directory)]
    return [], ["enroot", "start", *bound, *told, image, *moved, *command]


def _outermost(folders: Iterable[Path]) -> list[Path]:
    """Returns the folders without those that lie in another of them, sorted."""
    unique = sorted({Path(folder) for folder in folders})
    return [
        folder
        for folder in unique
        if not any(folder != other and folder.is_relative_to(other) for other in unique)
    ]
