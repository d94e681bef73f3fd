"""The shell of `dsvlp`: finds the verb, runs it, turns our errors into one sentence.

A verb's file is imported when it is called, so that `dsvlp --help` needs neither torch nor the
recipe's classes. click rather than typer because the import of typer alone takes three times as
long. Exit codes: 0 done, 1 a check failed, 2 a user can mend it, 130 interrupted; verbs may have
more.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from dsvlp import __version__
from dsvlp.errors import DsvlpError, MissingDependency

VERBS = {
    "train": "Train a recipe, or go on with a run.",
    "submit": "Train a recipe as a Slurm job.",
    "sweep": "Show a sweep, or start its failed members again.",
    "evaluate": "Score a run: losses and zero-shot retrieval.",
    "predict": "Match score and attention of a picture and a text.",
    "export": "Write a run's weights as safetensors and JSON, or as the official FIBER's.",
    "import": "Turn the official FIBER's weights into an export of ours.",
    "report": "Write a run's report.html and print its table.",
    "hours": "Tell GPU-hours billed, productive and lost, by run, sweep, user and week.",
    "data": "Write, check, show or draw data sets.",
    "plan": "Say what a run takes and costs, before it is submitted.",
    "recipes": "List the recipes, their cost and their keys.",
    "bench": "Measure decoding, loader, step, inference and scaling.",
    "doctor": "Check this machine and say what is missing.",
}
FILES = {"import": "importing"}  # verbs that Python does not allow as a module's name


class Verbs(click.Group):
    """A group whose commands are the files of `dsvlp.cli`, imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        try:
            command: click.Command = importlib.import_module(_module(cmd_name)).command
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] == "dsvlp":
                raise
            raise MissingDependency(
                f"`dsvlp {cmd_name}` needs the library {error.name!r}, which is not installed",
                fix="`dsvlp doctor` prints the command that installs it",
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


def _module(verb: str) -> str:
    return f"dsvlp.cli.{FILES.get(verb, verb)}"


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dsvlp")
def cli() -> None:
    """Pre-trains vision-language models end to end."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and ends the process.

    `DSVLP_DEBUG=1` shows the traceback of an error that is otherwise one sentence.
    """
    debug = os.environ.get("DSVLP_DEBUG") == "1"
    try:
        cli.main(args=arguments, prog_name="dsvlp")
    except DsvlpError as error:
        if debug:
            raise
        click.secho(f"dsvlp: {error}", fg="red", err=True)
        sys.exit(2)
