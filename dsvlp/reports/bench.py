"""A bench's result for reading: alone, beside a saved one, and several of the same kind side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsvlp import config
from dsvlp.engine.bench_figures import FORMAT
from dsvlp.engine.bench_parts import FLOOR, PART, UNEXPLAINED, WHOLE
from dsvlp.errors import RunError
from dsvlp.reports import table

ABOUT = ("hardware", "settings", "versions")
_KEYS = {"bench", "figures", "recipe", *ABOUT}
_LOAD = "load_average"  # another one is no other machine

Result = dict[str, Any]
FigureJson = dict[str, Any]


def read(path: Path, bench: str) -> Result:
    """Returns a saved result.

    Args:
        path: what `--json` wrote.
        bench: the bench it must be of.

    Raises:
        RunError: there is none in this file.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["format"] == FORMAT and saved.keys() >= _KEYS and saved["bench"] == bench:
            return dict(saved)
        problem = f"it is of {saved.get('bench')!r}, format {saved['format']}: {', '.join(sorted(saved))}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise RunError(
        f"--compare {path} holds no result of `dsvlp bench {bench}`: {problem}",
        f"a file of format {FORMAT} that --json wrote",
        "Measure again with --json",
    )


def show(result: Result, saved: Result | None = None) -> list[str]:
    """Returns the lines to print: the table, the parts of a step, what it was measured on, and how the saved
    one differs."""
    before = {figure["name"]: figure for figure in saved["figures"]} if saved is not None else {}
    head = ["", "unit", "median", "lowest", "highest"]
    head += ["saved", "its lowest to highest", "ratio to saved"] if saved else []
    rows = []
    for figure in result["figures"]:
        if figure["name"].startswith((PART, FLOOR)):
            continue
        row = [figure["name"], figure["unit"], figure["median"], figure["lowest"], figure["highest"]]
        rows.append([*row, *(_beside(figure, before.get(figure["name"])) if saved else [])])
    lines = [table.text(head, rows), "", *parts(result, saved)]
    lines += [f"{group}: {_listed(result[group])}" for group in ABOUT]
    return lines + (_differences(saved, result) if saved is not None else [])


def parts(result: Result, saved: Result | None = None) -> list[str]:
    """Returns the table of where a step's time goes, and where most is lost; nothing where none was measured.

    A part's distance to its floor is what a better kernel, layout or schedule could win at most.
    """
    figures = {figure["name"]: figure for figure in result["figures"]}
    if PART + WHOLE not in figures:
        return []
    before = {figure["name"]: figure for figure in saved["figures"]} if saved is not None else {}
    whole = figures[PART + WHOLE]["median"]
    head = ["part", "ms", "lowest", "highest", "share %", "floor ms", "above the floor ms"]
    head += ["saved ms", "ratio to saved"] if saved is not None else []
    rows, distances = [], {}
    for name, figure in figures.items():
        if not name.startswith(PART):
            continue
        part, floor = name.removeprefix(PART), figures.get(FLOOR + name.removeprefix(PART))
        least = floor["median"] if floor is not None else None
        row = [part, figure["median"], figure["lowest"], figure["highest"], 100 * figure["median"] / whole]
        row += ["", ""] if least is None else [table.show(least), table.show(figure["median"] - least)]
        if saved is not None:
            row += _beside(figure, before.get(name))[::2]
        rows.append(row)
        if part not in (WHOLE, UNEXPLAINED):
            distances[part] = figure["median"] - (least or 0.0)
    most = sorted(distances, key=lambda part: -distances[part])[:3]
    lost = ", ".join(f"{part} {table.show(distances[part])} ms" for part in most)
    return [table.text(head, rows), "", f"furthest above their floors: {lost}", ""]


def side_by_side(results: dict[str, Result]) -> list[str]:
    """Returns the lines to print of several variants: medians with their range, ratios to the first."""
    letters = {name: chr(ord("A") + number) for number, name in enumerate(results)}
    found = [{figure["name"]: figure for figure in result["figures"]} for result in results.values()]
    names = list(dict.fromkeys(name for figures in found for name in figures))
    head = ["", "unit"]
    for letter in letters.values():
        head += [letter, "lowest to highest", *([f"{letter} / A"] if letter != "A" else [])]
    rows = []
    for name in names:
        row: list[table.Cell] = [name, next(f[name] for f in found if name in f)["unit"]]
        for number, figures in enumerate(found):
            figure = figures.get(name)
            row += ["", ""] if figure is None else [table.show(figure["median"]), _range(figure)]
            row += [_quotient(figure, found[0].get(name))] if number else []
        rows.append(row)
    lines = [f"{letter}: {name}" for name, letter in letters.items()]
    first = next(iter(results.values()))
    return [*lines, "", table.text(head, rows), "", *(f"{group}: {_listed(first[group])}" for group in ABOUT)]


def _differences(saved: Result, result: Result) -> list[str]:
    """Returns a line of what differs in settings and recipe, and a warning of another machine or software."""
    plain = [
        line for group in ("settings", "recipe") for line in config.differences(saved[group], result[group])
    ]
    lines = [f"differs from the saved one in: {'; '.join(plain) or 'nothing'}"]
    now, then = ({**one["hardware"], _LOAD: 0} for one in (result, saved))
    other = config.differences(then, now) + config.differences(saved["versions"], result["versions"])
    if other:
        lines.append(f"WARNING: measured elsewhere, the ratios may be no change of ours: {'; '.join(other)}")
    loads = [one["hardware"].get(_LOAD, 0) for one in (saved, result)]
    cores = result["hardware"].get("cores", 1)
    if max(loads) > cores + 0.5:
        lines.append(f"WARNING: a busy machine: load {loads[0]} then, {loads[1]} now, on {cores} cores")
    return lines


def _beside(figure: FigureJson, before: FigureJson | None) -> list[table.Cell]:
    """Returns a saved figure's median and range, and the ratio of the new one to it."""
    if before is None:
        return ["", "", ""]
    return [table.show(before["median"]), _range(before), _quotient(figure, before)]


def _range(figure: FigureJson) -> str:
    return f"{table.show(figure['lowest'])} to {table.show(figure['highest'])}"


def _quotient(figure: FigureJson | None, before: FigureJson | None) -> str:
    if figure is None or before is None or not before["median"]:
        return ""
    return f"{figure['median'] / before['median']:.3f}"


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
