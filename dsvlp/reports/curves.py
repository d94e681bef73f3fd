"""Curves of a run as pictures that stand inside an HTML page."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Curve = tuple[Sequence[int], Sequence[float]]


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Returns the exponential mean, corrected for its start; NaN and infinity are passed over."""
    out, mean, total = [], 0.0, 0.0
    for value in values:
        if math.isfinite(value):
            mean, total = weight * mean + (1 - weight) * value, weight * total + 1 - weight
        out.append(mean / total if total else math.nan)
    return out


def picture(title: str, curves: Mapping[str, Curve], *, smoothed: bool = False) -> str:
    """Returns an `img` element with all curves on one pair of axes over steps.

    Args:
        title: the heading, and the picture's alternative text.
        curves: label -> (steps, values).
        smoothed: draw the running mean, the raw values faintly behind it.
    """
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for label, (steps, values) in curves.items():
        marker = "o" if len(steps) == 1 else None
        if smoothed and len(steps) > 20:
            faint = axes.plot(steps, values, alpha=0.25, linewidth=0.8)[0]
            axes.plot(steps, smooth(values), label=label, color=faint.get_color())
        else:
            axes.plot(steps, values, label=label, marker=marker)
    _finish(axes, title)
    return _embed(figure, title)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _embed(figure: Figure, title: str) -> str:
    FigureCanvasAgg(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    code = base64.b64encode(data.getvalue()).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{code}">'
