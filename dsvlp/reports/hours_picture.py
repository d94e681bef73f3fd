"""A picture of hours: a bar a run (or a week), its parts where the hours went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dsvlp.accounting.charges import REASONS
from dsvlp.accounting.hours import Total
from dsvlp.errors import RunError
from dsvlp.reports.hours import LABELS

# Training is green, what was lost red, what nobody explains grey.
PHASES = ("#2a7f3f", "#e0a030", "#4a90c2", "#c0504d", "#8064a2", "#7f7f7f", "#bfa5d0")
OTHERS = ("#8c1d18", "#404040", "#b0b0b0", "#d8d8d8")


def draw(lines: Sequence[Total], path: Path) -> None:
    """Writes a stacked bar a line, all of one unit, into a PNG, PDF or SVG.

    Raises:
        RunError: the file cannot be written, or its ending is not known.
    """
    figure = Figure(figsize=(9, 1.6 + 0.4 * len(lines)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = [line.name for line in lines]
    left = [0.0] * len(lines)
    for reason, colour in zip(REASONS, (*PHASES, *OTHERS), strict=True):
        widths = [max(0.0, line.spent[reason]) for line in lines]
        if any(widths):
            axes.barh(names, widths, left=left, color=colour, label=LABELS[reason])
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for index, line in enumerate(lines):
        if line.goodput is not None:
            axes.text(left[index], index, f" {line.goodput:.0%}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel(f"{lines[0].unit}-hours billed; at the bar's end the goodput")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be written: {error}", "a .png, .pdf or .svg file") from error
