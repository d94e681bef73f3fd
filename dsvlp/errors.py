"""The project's own errors. Each message says what was found, what was expected and what to do.

Floor 0; imports nothing. Whatever a user can cause (a recipe, a data file, a checkpoint, a
machine) ends in one of these; any other exception is a bug of ours.
"""


class DsvlpError(Exception):
    """Base of all errors that a user can mend.

    Args:
        found: what was found, with its value and its place (file, record, key).
        expected: what was expected instead.
        fix: what to do, by preference a command.
    """

    def __init__(self, found: str, expected: str = "", fix: str = "") -> None:
        self.found, self.expected, self.fix = found, expected, fix
        parts = [found, f"Expected {expected}" if expected else "", fix]
        super().__init__(" ".join(map(_sentence, filter(None, parts))))

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.found, self.expected, self.fix)


def _sentence(text: str) -> str:
    return text if text.endswith("?") else text.rstrip(".") + "."


class RecipeError(DsvlpError):
    """A recipe, a `key=value` or a DeepSpeed layout is wrong."""


class DataError(DsvlpError):
    """A raw data file, an image or a `.beton` data set is wrong."""


class CheckpointError(DsvlpError):
    """A checkpoint is absent, damaged or does not belong to this run."""


class RunError(DsvlpError):
    """A run cannot start or go on: its folder, its processes, its numbers."""


class MissingDependency(DsvlpError):
    """A library or a program that this command needs is not on this machine."""


class SlurmError(DsvlpError):
    """Slurm refused a command or gave no answer."""
