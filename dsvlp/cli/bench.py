"""`dsvlp bench`: measurements that others can repeat; each lies in a file of its own."""

from __future__ import annotations

import importlib

import click

VERBS = {
    "decode": "Images a second from JPEG bytes to training pixels, by backend.",
    "loader": "Images a second beside torch's DataLoader with Pillow and with simplejpeg.",
    "step": "Time split, samples a second, FLOPs and MFU of a training step; where its time goes.",
    "inference": "Milliseconds an image-text pair, by batch size.",
    "scaling": "A training step on 1, 2, 4 ... processes: efficiency, share of communication.",
}


class Benches(click.Group):
    """A group whose commands are the files `dsvlp.cli.bench_*`, imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"dsvlp.cli.bench_{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Benches)
def command() -> None:
    """Measure data, training and inference on this machine."""
