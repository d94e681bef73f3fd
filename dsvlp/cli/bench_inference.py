"""`dsvlp bench inference`: what encoding and matching an image-text pair takes, by batch size."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from dsvlp import recipe
from dsvlp.cli import bench_turns
from dsvlp.cli.bench_turns import Variant
from dsvlp.errors import RecipeError
from dsvlp.launch import local


@click.command()
@bench_turns.recipe_arguments
@click.option("--batch", "batches", type=bench_turns.count, multiple=True, default=(1, 64), show_default=True)
@click.option("--seconds", default=2.0, show_default=True, help="Of each measurement, at least one call.")
@click.option("--repeats", type=bench_turns.count, default=5, show_default=True, help="Measurements.")
@click.option("--text-tokens", type=bench_turns.count, help="Real tokens of a text; by default the longest.")
@click.option("--detector", help="Also make what SemVLP reads, by this detector: hub name or folder.")
@click.option("--backbone", default="resnet101", show_default=True, help="With it: the CNN of timm.")
@bench_turns.against_option
@bench_turns.result_options
def command(
    name: str,
    overrides: tuple[str, ...],
    batches: tuple[int, ...],
    seconds: float,
    repeats: int,
    text_tokens: int | None,
    detector: str | None,
    backbone: str,
    against: tuple[str, ...],
    out: Path | None,
    compare: Path | None,
) -> None:
    """Measure inference of RECIPE's system: ms an image-text pair to encode the image, encode the text, fuse.

    Images are pixels or objects in memory, texts are token ids; weights are random. On the recipe's device
    and in its precision.
    """
    if against and compare is not None:
        raise click.UsageError("--against prints its own ratios, without --compare")
    if against and detector is not None:
        raise click.UsageError("--detector measures one recipe, without --against")
    variants = [(name, *overrides), *(bench_turns.variant(name, overrides, text) for text in against)]
    resolved = [recipe.load(first, rest) for first, *rest in variants]
    for one in resolved:
        _check(one, text_tokens)
    saved = bench_turns.begin("inference", out, compare)
    if against:
        given = [text for size in batches for text in ("--batch", str(size))]
        given += ["--seconds", str(seconds), "--repeats", "1"]
        given += ["--text-tokens", str(text_tokens)] if text_tokens else []
        sys.exit(_compare(variants, given, repeats, out))
    from dsvlp.engine.bench_extraction import Extraction  # these import torch: only where it measures
    from dsvlp.engine.bench_inference import Lengths, bench

    extraction = None if detector is None else Extraction(detector, backbone)
    result = bench(resolved[0], Lengths(batches, seconds, repeats, text_tokens, extraction))
    bench_turns.finish(result, out, saved)


def _check(resolved: recipe.Recipe, text_tokens: int | None) -> None:
    longest = resolved.model.text.max_length
    if text_tokens is not None and text_tokens > longest:
        raise RecipeError(f"--text-tokens {text_tokens}", f"at most model.text.max_length = {longest}")
    if resolved.objectives.itm is None:
        raise RecipeError("the recipe has no objectives.itm", "one, whose score ends the fusion")


def _compare(variants: list[Variant], given: list[str], repeats: int, out: Path | None) -> int:
    commands = {
        " ".join(each): (local.own_command(["bench", "inference", *each, *given]), 1) for each in variants
    }
    results = bench_turns.take_turns("inference", commands, repeats)
    if isinstance(results, int):
        return results
    bench_turns.finish_variants("inference", results, out)
    return 0
