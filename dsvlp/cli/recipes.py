"""`dsvlp recipes`: what ships, what it costs, and every key that a recipe may have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from dsvlp import catalog, config, recipe
from dsvlp.accounting import flops, hardware
from dsvlp.accounting.assumptions import Assumptions
from dsvlp.accounting.price import price
from dsvlp.reports import table

CARD = "h200"


@click.command()
@click.argument("name", required=False)
@click.argument("overrides", nargs=-1)
@click.option("--keys", is_flag=True, help="Print every key with its type, default and meaning.")
def command(name: str | None, overrides: tuple[str, ...], keys: bool) -> None:
    """List the recipes, or print the resolved recipe NAME (or file) with key=value OVERRIDES."""
    if keys:
        for line in key_lines():
            click.echo(line)
    elif name is not None:
        _show(recipe.load(name, overrides))
    else:
        _list()


def _list() -> None:
    card, mfu = hardware.named(CARD), Assumptions().mfu
    rows: list[list[table.Cell]] = []
    for name in sorted(path.stem for path in config.RECIPES.glob("*.toml")):
        shipped = recipe.load(name)
        cost = price(shipped, card, mfu)
        numbers = [cost.parameters / 1e6, cost.flop_per_pair / 1e9, cost.pairs / 1e6, cost.gpu_hours]
        paper = cost.paper.stated() if cost.paper is not None else ""
        rows.append([name, shipped.model.system, *numbers, paper, shipped.description])
    head = ["recipe", "system", "M parameters", "GFLOP/pair", "M pairs", f"{card.name}-h", "paper", ""]
    click.echo(table.text(head, rows))
    click.echo(
        f"\nGFLOP of forward and backward at the full text length; hours of the whole run at {mfu:.0%} of a "
        f"{card.name}'s peak, projected, not measured; beside it the hours of the paper's own run of that "
        "model (an estimate is others').\n`dsvlp recipes NAME` shows one recipe, `dsvlp plan NAME` what it "
        "needs."
    )


def _show(shown: recipe.Recipe) -> None:
    click.echo(json.dumps(config.dump(shown), indent=2))
    click.echo(f"\n{'component':22} {'parameters':>13} {'GFLOP/pair, forward':>20}")
    costs = flops.components(shown)
    for component, cost in {**costs, "sum": flops.total(costs)}.items():
        if cost.parameters:
            click.echo(f"{component:22} {cost.parameters:13,} {cost.forward / 1e9:20.3f}")
    click.echo(f"hash {config.digest(shown)}")
    for note in catalog.notes(shown):
        click.echo(f"note: {note}")


def key_lines() -> Iterator[str]:
    """Yields one line for each key of a recipe: dotted key, type, default, meaning."""
    schema = recipe.Recipe.model_json_schema()
    for key, node in _leaves(schema, schema, ""):
        default = f" = {json.dumps(node['default'])}" if "default" in node else ""
        meaning = f"  # {node['description']}" if "description" in node else ""
        yield f"{key}: {_type(schema, node)}{default}{meaning}"


def _leaves(
    schema: dict[str, Any], table: dict[str, Any], prefix: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, node in table["properties"].items():
        tables = [t for t in _options(schema, node) if "properties" in t]
        if not tables:
            yield prefix + key, node
        for inner in tables:
            tags = [(key, inner["properties"].get(key, {}).get("const")) for key in ("system", "kind")]
            tag = "".join(f" ({key} {name})" for key, name in tags if name and len(tables) > 1)
            yield from _leaves(schema, inner, f"{prefix}{key}{tag}.")


def _options(schema: dict[str, Any], node: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the alternatives of a node, references followed; a list of tables counts as its table."""
    if "$ref" in node:
        return [schema["$defs"][node["$ref"].rsplit("/", 1)[1]]]
    if "$ref" in node.get("items", {}):
        return _options(schema, node["items"])
    nested = node.get("anyOf", []) + node.get("oneOf", [])
    return [option for each in nested for option in _options(schema, each)] or [node]


def _type(schema: dict[str, Any], node: dict[str, Any]) -> str:
    words = []
    for option in _options(schema, node):
        if "enum" in option or "const" in option:
            words += [json.dumps(value) for value in option.get("enum", [option.get("const")])]
        elif option.get("type") != "null":
            words.append(_bounds(option))
    return " | ".join(words)


def _bounds(option: dict[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {option[key]:g}" for key, sign in signs.items() if key in option]
    if option["type"] == "array" and "prefixItems" in option:
        return f"[{', '.join(_bounds(item) for item in option['prefixItems'])}]"
    return " ".join([option["type"], *limits])
