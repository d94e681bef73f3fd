#!/usr/bin/env python
"""SVL's own claim in small: validation ITM loss at equal steps, without and with each visual loss.

Trains `tiny_svl` on synthetic scenes once a seed and variant (none, SSUL, SEGL, SPL; equal data, order
and steps; SPL's queries change the draw of the other initial weights, the heads of SSUL and SEGL do
not), and prints the mean and the spread
over seeds of the ITM loss on held-out scenes, with the curves as a picture. The paper's order by its
Table II is none < SPL36 < SPL100 ~ SSUL < SEGL (better to the right); what comes out is printed.

    OMP_NUM_THREADS=1 python tools/svl_claim.py --steps 800 --seeds 3 --jobs 2 --out runs/svl_claim
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

METRIC = "validation/loss/itm"
VARIANTS = {
    "none": ["objectives.segl=false"],
    "SSUL": ["objectives.segl=false", "objectives.ssul.cell=16"],
    "SEGL": [],
    "SPL": ["objectives.segl=false", "objectives.spl.weight=1.0", "model.visual_queries=8"],
}


def train(run: Path, overrides: list[str]) -> None:
    """Trains one member; a finished member is kept, so that the command can be run again."""
    if (run / "finished").exists():
        return
    command = [sys.executable, "-m", "dsvlp", "train", "tiny_svl", "--run", str(run), *overrides]
    with (run.parent / f"{run.name}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)
    (run / "finished").touch()


def curve(run: Path) -> dict[int, float]:
    """Returns step -> validation ITM loss of one member."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[METRIC] for line in lines if METRIC in line}


def draw(curves: dict[str, list[dict[int, float]]], path: Path) -> None:
    """Draws mean (line) and range over seeds (band) of each variant."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, members in curves.items():
        steps = sorted(set.intersection(*(set(member) for member in members)))
        values = [[member[step] for member in members] for step in steps]
        line = axes.plot(steps, [statistics.mean(v) for v in values], label=name)[0]
        axes.fill_between(
            steps, [min(v) for v in values], [max(v) for v in values], alpha=0.15, color=line.get_color()
        )
    axes.set(xlabel="step", ylabel="validation ITM loss (nats)")
    axes.legend()
    axes.grid(alpha=0.3)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)


def table(curves: dict[str, list[dict[int, float]]]) -> list[str]:
    """Returns a Markdown table of the last common step: mean, spread and each seed's value."""
    last = min(max(member) for members in curves.values() for member in members)
    rows = [
        f"| visual loss | ITM loss at step {last}: mean | spread (max - min) | each seed |",
        "|---|---|---|---|",
    ]
    for name, members in curves.items():
        values = [member[last] for member in members]
        each = ", ".join(f"{value:.4f}" for value in values)
        rows.append(f"| {name} | {statistics.mean(values):.4f} | {max(values) - min(values):.4f} | {each} |")
    return rows


def main() -> None:
    """Trains all members, then prints the table and draws the curves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="members that train at the same time")
    parser.add_argument("--out", type=Path, default=Path("runs/svl_claim"))
    parser.add_argument("overrides", nargs="*", help="further key=value for every member")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    every = max(arguments.steps // 10, 1)
    common = [
        f"schedule.steps={arguments.steps}",
        f"watch.validate_every_steps={every}",
        *arguments.overrides,
    ]
    members = {
        arguments.out / f"{name.lower()}-{seed}": [*overrides, *common, f"seed={seed}"]
        for seed in range(arguments.seeds)
        for name, overrides in VARIANTS.items()
    }
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(train, members.keys(), members.values()))
    curves = {
        name: [curve(arguments.out / f"{name.lower()}-{seed}") for seed in range(arguments.seeds)]
        for name in VARIANTS
    }
    rows = table(curves)
    (arguments.out / "table.md").write_text("\n".join(rows) + "\n")
    draw(curves, arguments.out / "curves.png")
    print("\n".join(rows))
    print(f"curves: {arguments.out / 'curves.png'}")


if __name__ == "__main__":
    main()
