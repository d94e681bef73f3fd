"""Tables of text and numbers, for the terminal and for HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence

Cell = str | int | float


def text(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Returns an aligned table; numbers right, words left."""
    cells = [[show(cell) for cell in row] for row in rows]
    columns = list(zip(head, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        return "  ".join(padded).rstrip()

    return "\n".join([line(head), line(["-" * w for w in widths]), *map(line, cells)])


def to_html(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Returns a table element; every cell is escaped."""

    def cells(row: Sequence[Cell], tag: str) -> str:
        kinds = ["number" if isinstance(cell, int | float) else "word" for cell in row]
        texts = [html.escape(show(cell)) for cell in row]
        inside = "".join(
            f'<{tag} class="{kind}">{text}</{tag}>' for kind, text in zip(kinds, texts, strict=True)
        )
        return f"<tr>{inside}</tr>"

    return f"<table>{cells(head, 'th')}{''.join(cells(row, 'td') for row in rows)}</table>"


def show(cell: Cell) -> str:
    """Returns a cell's text: four significant digits for a float, thousands apart for an int."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if abs(cell) < 10000 else f"{cell:,.0f}"
