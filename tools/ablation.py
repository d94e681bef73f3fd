#!/usr/bin/env python
"""The papers' ablations in small: one study a command, the mean over seeds, whatever comes out.

A study trains a tiny recipe on synthetic scenes once a seed and variant, with equal data, order and steps,
and scores each on 200 held-out scenes: losses, ITM's accuracy, R@1 of texts for images (TR) and of images
for texts (IR). Where the paper fine-tunes what it has pre-trained, so does the study: every variant, and one
without pre-training, goes on with ITM alone, equally long, on all pixels.

    svl          SVL's visual losses (Table II): none, SSUL, SEGL, SPL
    pixelbert    Pixel-BERT's Table 6: nothing, ITM, MLM, both on all pixels, both on some of them
    semvlp       SemVLP's Table 4: low level (one stream), high level (two streams), both
    semvlp_from  SemVLP's Figure 3: the layer from which the image stream reads the text

    OMP_NUM_THREADS=1 python tools/ablation.py pixelbert --steps 800 --jobs 2 --out runs/pixelbert_ablation

OUT gets a folder a member, table.md, result.json and curves.png. Run again after an interruption: what is
finished is kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dsvlp.errors import RunError
from dsvlp.files import write_json
from dsvlp.origin import git_state

CURVE = "validation/loss/itm"
SCORES = {
    "MLM loss before fine-tuning": ("pretraining", "losses", "loss/mlm"),
    "ITM accuracy before": ("pretraining", "itm_accuracy_random_texts", "value"),
    "ITM loss": ("losses", "loss/itm"),
    "ITM accuracy": ("itm_accuracy_random_texts", "value"),
    "MLM loss": ("losses", "loss/mlm"),
    "QA accuracy": ("losses", "metrics/qa/accuracy"),
    "TR R@1": ("retrieval", "itm_first_captions", "TR@1", "value"),
    "IR R@1": ("retrieval", "itm_first_captions", "IR@1", "value"),
}
"""Column -> where it stands in what `run` returns."""


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        recipe: the shipped recipe.
        variants: name -> overrides; None: no pre-training.
        paper: what the paper found.
        finetuning: overrides of the second training, which all variants share; None: there is none.
    """

    recipe: str
    variants: dict[str, tuple[str, ...] | None]
    paper: str
    finetuning: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Member:
    """One training of a study, and the fine-tuning after it: everything that decides its scores."""

    recipe: str
    pretraining: tuple[str, ...] | None
    finetuning: tuple[str, ...] | None


ALL_PIXELS = "model.pixels=0"
STUDIES = {
    "svl": Study(
        "tiny_svl",
        {
            "none": ("objectives.segl=false",),
            "SSUL": ("objectives.segl=false", "objectives.ssul.cell=16"),
            "SEGL": (),
            "SPL": ("objectives.segl=false", "objectives.spl.weight=1.0", "model.visual_queries=8"),
        },
        "from worst to best none, SPL with 36 queries, with 100 and SSUL, SEGL",
    ),
    "pixelbert": Study(
        "tiny_pixelbert",
        {
            "nothing": None,
            "ITM": (ALL_PIXELS, "objectives.mlm=false"),
            "MLM": (ALL_PIXELS, "objectives.itm=false"),
            "both, all 9 pixels": (ALL_PIXELS,),
            "both, 6 at random": ("model.pixels=6",),
        },
        "TR / IR R@1 on Flickr30k: nothing 52.4 / 39.6, ITM 69.0 / 55.5, MLM 67.1 / 52.7, both on all of "
        "about 204 pixels 72.0 / 57.7, both on 100 at random 75.7 / 59.8",
        finetuning=(ALL_PIXELS, "objectives.mlm=false"),
    ),
    "semvlp": Study(
        "tiny_semvlp",
        {
            "low level": ("model.mode_schedule=single", "model.inference=single"),
            "high level": ("model.mode_schedule=two", "model.inference=two"),
            "both": ("model.mode_schedule=halves", "model.inference=two"),
        },
        "VQA test-dev: low level 73.72, high level 73.48, both 74.52",
    ),
    "semvlp_from": Study(
        "tiny_semvlp",
        {f"from layer {layer} of 4": (f"model.cross_from={layer}",) for layer in range(4)},
        "best from the middle on, layer 6 of 12",
    ),
}


def members(
    study: Study, seed: int, steps: int, finetuning_steps: int, overrides: Sequence[str]
) -> dict[str, Member]:
    """Returns the members of one seed by variant."""
    shared = (*overrides, f"seed={seed}")

    def training(own: tuple[str, ...] | None, length: int) -> tuple[str, ...] | None:
        times = (f"schedule.steps={length}", f"watch.validate_every_steps={max(length // 10, 1)}")
        return None if own is None else (*shared, *own, *times)

    after = training(study.finetuning, finetuning_steps)
    return {name: Member(study.recipe, training(own, steps), after) for name, own in study.variants.items()}


def run(member: Member, folder: Path, pairs: int = 0) -> dict[str, Any]:
    """Trains and scores a member and returns its scores; what is finished there is kept.

    Args:
        member: what to train.
        folder: the member's own.
        pairs: held-out pairs to score, see `dsvlp evaluate --pairs`.

    Returns:
        `scores.json` of the last training, with that of the pre-training before it as "pretraining".
    """
    before, after = folder / "pretrained", folder / "finetuned"
    start: tuple[str, ...] = ()
    scores: dict[str, Any] = {}
    if member.pretraining is not None:
        options = [] if member.finetuning is None else ["--no-retrieval"]
        scores = _trained(before, member.recipe, member.pretraining, [*options, "--pairs", str(pairs)])
    if member.finetuning is not None and member.pretraining is not None:
        export, exported = folder / "export", folder / "exported"
        if not exported.exists():
            shutil.rmtree(export, ignore_errors=True)  # of a kill between the two
        _step(exported, "export", str(before), "--out", str(export))
        start = (f"start={export}",)
    if member.finetuning is not None:
        tuned = _trained(after, member.recipe, (*member.finetuning, *start), ["--pairs", str(pairs)])
        scores = {**tuned, "pretraining": scores}
    return scores


def _trained(run: Path, recipe: str, overrides: tuple[str, ...], options: list[str]) -> dict[str, Any]:
    """Returns the scores of a run, trained and scored unless it was before."""
    _step(run.with_name(f"{run.name}-trained"), "train", recipe, "--run", str(run), *overrides)
    _step(run.with_name(f"{run.name}-scored"), "evaluate", str(run), *options)
    scores: dict[str, Any] = json.loads((run / "scores.json").read_text())
    return scores


def _step(mark: Path, verb: str, *arguments: str) -> None:
    """Runs one dsvlp verb unless its mark says that it was done; a killed one is run again.

    Raises:
        RunError: it failed, with the end of what it said; or it was done with other arguments.
    """
    done = " ".join((verb, *arguments))
    if mark.exists():
        if mark.read_text() != done:
            raise RunError(
                f"{mark} was made by {mark.read_text()!r}",
                repr(done),
                "Choose another --out, or remove this one",
            )
        return
    mark.parent.mkdir(parents=True, exist_ok=True)
    path, command = mark.with_suffix(".log"), [sys.executable, "-m", "dsvlp", verb, *arguments]
    with path.open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=log).returncode
    if code:
        end = " ".join(path.read_text().splitlines()[-3:])
        raise RunError(f"dsvlp {verb} ended with {code}: {end}", fix=f"See {path}, then run this again")
    mark.write_text(done)


def figures(scores: dict[str, Any]) -> dict[str, float]:
    """Returns the columns that a run has, by name."""
    out = {}
    for column, path in SCORES.items():
        value: Any = scores
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            out[column] = value
    return out


def table(results: dict[str, list[dict[str, float]]], paper: str) -> str:
    """Returns a Markdown table: mean over seeds, and the smallest and the largest, of each column."""
    columns = [
        column for column in SCORES if any(column in one for seeds in results.values() for one in seeds)
    ]
    lines = [f"| variant | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, seeds in results.items():
        cells = [_cell([one[column] for one in seeds if column in one]) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    count = min(map(len, results.values()))
    return "\n".join([*lines, "", f"Mean (lowest to highest) of {count} seeds. The paper: {paper}.", ""])


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def curve(folder: Path) -> dict[int, float]:
    """Returns step -> validation ITM loss of a member's last training; empty where it has no ITM."""
    runs = [path for path in (folder / "finetuned", folder / "pretrained") if path.is_dir()]
    lines = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[CURVE] for line in lines if CURVE in line}


def draw(curves: dict[str, list[dict[int, float]]], path: Path) -> None:
    """Draws mean (line) and range over seeds (band) of each variant."""
    shown = Figure(figsize=(7, 4), layout="constrained")
    axes = shown.add_subplot()
    for name, seeds in curves.items():
        steps = sorted(set.intersection(*(set(one) for one in seeds)))
        values = [[one[step] for one in seeds] for step in steps]
        line = axes.plot(steps, [statistics.mean(v) for v in values], label=name)[0]
        axes.fill_between(
            steps, [min(v) for v in values], [max(v) for v in values], alpha=0.15, color=line.get_color()
        )
    axes.set(xlabel="step", ylabel="validation ITM loss (nats)")
    axes.legend()
    axes.grid(alpha=0.3)
    FigureCanvasAgg(shown)
    shown.savefig(path, dpi=120)


def folder_of(name: str, seed: int) -> str:
    """Returns the name of a member's folder."""
    return f"{name.replace(', ', '-').replace(' ', '-').lower()}-{seed}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all members of a study that are not finished, then writes and prints what came out."""
    chosen = _parser().parse_intermixed_args(arguments)
    study, out = STUDIES[chosen.study], chosen.out or Path("runs") / f"{chosen.study}_ablation"
    sizes = (chosen.steps, chosen.finetuning_steps or chosen.steps // 4 or 1, chosen.overrides)
    places = [
        (name, out / folder_of(name, seed), member)
        for seed in range(chosen.seeds)
        for name, member in members(study, seed, *sizes).items()
    ]
    with ThreadPoolExecutor(chosen.jobs) as pool:
        scores = list(pool.map(lambda place: run(place[2], place[1], chosen.pairs), places))
    results: dict[str, list[dict[str, float]]] = {name: [] for name in study.variants}
    for (name, _, _), one in zip(places, scores, strict=True):
        results[name].append(figures(one))
    curves = {name: [curve(folder) for own, folder, _ in places if own == name] for name in study.variants}
    draw(curves, out / "curves.png")
    written = table(results, study.paper)
    (out / "table.md").write_text(written)
    settings = {"study": chosen.study, "recipe": study.recipe, "seeds": chosen.seeds, "steps": chosen.steps}
    settings |= {"pairs": chosen.pairs}
    settings |= {"finetuning_steps": sizes[1] if study.finetuning is not None else 0}
    settings |= {"overrides": list(chosen.overrides), "git": git_state()}
    write_json(out / "result.json", {**settings, "results": results})
    print(written)
    print(f"written to {out}: table.md, result.json, curves.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--finetuning-steps", type=int, help="by default a quarter of --steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="members that train at the same time")
    parser.add_argument("--pairs", type=int, default=0, help="held-out pairs to score; 0: all of 200 scenes")
    parser.add_argument("--out", type=Path, help="by default runs/STUDY_ablation")
    parser.add_argument("overrides", nargs="*", help="further key=value for every training")
    return parser


if __name__ == "__main__":
    main()
