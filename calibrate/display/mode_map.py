"""What each block did in each row, and what stock would have done."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from calibrate.display.theme import Palette, figure

# Letters of `scope_runtime.report.LEGEND`, from the cheapest to the dearest.
_MODES = {
    ".": ("left out", "ghost"),
    "C": ("cache", "cache"),
    "P": ("predict", "predict"),
    "K": ("capture context", "context"),
    "#": ("computed without need", "muted"),
    "R": ("recompute", "recompute"),
}
_NO_BLOCK = " "
_MOST_LETTERS = 90
_ROW_HEIGHT = 34


def mode_map(modes: Sequence[str], colours: Palette) -> go.Figure:
    """A map of rows (left to right, as time goes) by blocks (first on top); stock computes every cell of it.

    Args:
        modes: One string per row, one letter per block; rows of a shorter window have fewer.
        colours: Of the page.
    """
    most = max(map(len, modes))
    letters = np.array([list(row.ljust(most, _NO_BLOCK)) for row in modes]).T
    blocks, rows = letters.shape
    order = {letter: float(number) for number, letter in enumerate(_MODES)} | {_NO_BLOCK: np.nan}
    numbers = np.vectorize(order.__getitem__)(letters)
    made = figure(colours, "Row of the schedule", "Block", 120 + _ROW_HEIGHT * blocks)
    shades = [getattr(colours, shade) for _, shade in _MODES.values()]
    steps = [(edge / len(shades), shade) for i, shade in enumerate(shades) for edge in (i, i + 1)]
    names = np.vectorize({letter: name for letter, (name, _) in _MODES.items()}.get)(letters, "")
    shown = np.where(letters == ".", "", letters) if rows <= _MOST_LETTERS else None
    made.add_trace(
        go.Heatmap(
            z=numbers,
            zmin=-0.5,
            zmax=len(_MODES) - 0.5,
            colorscale=steps,
            showscale=False,
            hoverongaps=False,
            xgap=1,
            ygap=2,
            customdata=names,
            text=shown,
            texttemplate="%{text}" if shown is not None else None,
            textfont={"size": 11, "color": "#FFFFFF"},
            hovertemplate="row %{x}, block %{y}: %{customdata}<extra></extra>",
        )
    )
    for letter, (name, shade) in _MODES.items():
        if letter in letters:
            count = int((letters == letter).sum())
            made.add_trace(
                go.Scatter(
                    x=[None],
                    y=[None],
                    mode="markers",
                    name=f"{letter.strip('.')} {name} ({count})".strip(),
                    marker={"symbol": "square", "size": 12, "color": getattr(colours, shade)},
                )
            )
    made.update_xaxes(showgrid=False, range=[-0.5, rows - 0.5])
    made.update_yaxes(showgrid=False, autorange=False, range=[blocks - 0.5, -0.5], dtick=1)
    return made
