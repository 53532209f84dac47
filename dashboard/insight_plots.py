"""Figures about the search itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from calibrate.display.measures import QUALITY, SPEED, Measure
from calibrate.display.theme import Palette, figure
from calibrate.display.wording import chart_text
from dashboard.insight import Curve

_PARALLEL_LINES = 1500
_FEW_VALUES = 12


def importance_bars(by_goal: Mapping[str, Mapping[str, float]], colours: Palette) -> go.Figure:
    """Bars per parameter, one colour and pattern per goal."""
    found_any = {name for found in by_goal.values() for name, share in found.items() if share > 0}
    names = sorted(found_any, key=lambda n: sum(f.get(n, 0) for f in by_goal.values()))
    made = figure(colours, "Share of the effect (PED-ANOVA)", "", 110 + 34 * len(names))
    for (goal, found), colour, pattern in zip(
        by_goal.items(), (colours.feasible, colours.chosen), ("", "/"), strict=False
    ):
        made.add_trace(
            go.Bar(
                y=[chart_text(name.replace("_", " ")) for name in names],
                x=[found.get(name, 0.0) for name in names],
                orientation="h",
                name=goal,
                marker={"color": colour, "pattern": {"shape": pattern}},
                hovertemplate=f"%{{y}}: %{{x:.2f}} of {goal}<extra></extra>",
            )
        )
    made.update_layout(barmode="group", bargap=0.25, margin={"l": 140})
    made.update_yaxes(type="category", showgrid=False)
    return made


def parameter_curve(
    x: Sequence[float], y: Sequence[float], shape: Curve, name: str, measure: Measure, colours: Palette
) -> go.Figure:
    """Every policy as a point, the median over bins as a line, the middle half as a band."""
    made = figure(colours, chart_text(name.replace("_", " ")), measure.label, 380)
    made.add_trace(
        go.Scatter(
            x=list(x), y=list(y), mode="markers", name="measured policies", opacity=0.45,
            marker={"color": colours.muted, "size": 6}, hovertemplate="%{x:.3g}: %{y:.4g}<extra></extra>",
        )
    )  # fmt: skip
    band = np.concatenate([shape.x, shape.x[::-1]]), np.concatenate([shape.high, shape.low[::-1]])
    made.add_trace(
        go.Scatter(
            x=band[0], y=band[1], fill="toself", mode="none", name="middle half", opacity=0.25,
            fillcolor=colours.feasible, hoverinfo="skip",
        )
    )  # fmt: skip
    made.add_trace(
        go.Scatter(
            x=shape.x, y=shape.median, mode="lines+markers", name="median",
            line={"color": colours.feasible, "width": 3},
            hovertemplate="median at %{x:.3g}: %{y:.4g}<extra></extra>",
        )
    )  # fmt: skip
    return made


def parallel_coordinates(table: pd.DataFrame, colour_by: Measure, colours: Palette) -> go.Figure:
    """One line per policy through its parameters and figures; of very many an even selection.

    Args:
        table: A column per axis, those of text as text.
        colour_by: The figure, also a column, that colours the lines.
        colours: Of the page.
    """
    stride = -(-len(table) // _PARALLEL_LINES)
    table = table.iloc[::stride]
    made = figure(colours, "", "", 460)
    made.add_trace(
        go.Parcoords(
            dimensions=[_dimension(name, column) for name, column in table.items()],
            line={
                "color": table[colour_by.key],
                "colorscale": [(0, colours.chosen), (1, colours.feasible)],  # no ready-made one shows on both pages
                "showscale": True,
                "colorbar": {"title": colour_by.short},
            },
            labelfont={"size": 13, "color": colours.text},
            tickfont={"size": 11, "color": colours.text},
        )
    )
    made.update_layout(margin={"l": 72, "r": 24, "t": 72, "b": 24})
    return made


def hypervolume_curve(
    counts: Sequence[int], areas: Sequence[float], quality: Measure, floor: float, colours: Palette
) -> go.Figure:
    """How much the front still grew with the last candidates."""
    unit = "x dB" if quality.key.endswith("_db") else "x"
    made = figure(colours, "Measured policies", f"Hypervolume above 1x and {quality.text(floor)} ({unit})", 380)
    made.add_trace(
        go.Scatter(
            x=list(counts), y=list(areas), mode="lines", line={"color": colours.feasible, "width": 3, "shape": "hv"},
            hovertemplate="after %{x} policies: %{y:.4g}<extra></extra>",
        )
    )  # fmt: skip
    return made


def replay_against_real(estimated: Sequence[float], measured: Sequence[float], colours: Palette) -> go.Figure:
    """Replay's promise against what the real generation gave; on the line they agree."""
    made = figure(colours, "PSNR estimated by replay (dB)", "PSNR measured (dB)", 380)
    made.add_trace(
        go.Scatter(
            x=list(estimated), y=list(measured), mode="markers", name="policies",
            marker={"color": colours.feasible, "size": 7},
            hovertemplate="estimated %{x:.1f} dB, measured %{y:.1f} dB<extra></extra>",
        )
    )  # fmt: skip
    ends = [min(*estimated, *measured), max(*estimated, *measured)]
    made.add_trace(
        go.Scatter(
            x=ends, y=ends, mode="lines", name="equal", line={"color": colours.muted, "dash": "dash"}, hoverinfo="skip"
        )
    )
    return made


def _dimension(name: Any, column: pd.Series) -> dict[str, Any]:
    measure = {**SPEED, **QUALITY}.get(str(name))
    label = measure.short if measure else chart_text(str(name).replace("_", " "))
    if pd.api.types.is_numeric_dtype(column):
        few = np.unique(column.to_numpy())
        # Between two whole numbers that were tried there is nothing to read off.
        ticks = {"tickvals": few} if len(few) <= _FEW_VALUES and (few == np.round(few)).all() else {}
        return {"label": label, "values": column.to_numpy(), **ticks}
    codes, texts = pd.factorize(column.astype(str), sort=True)
    return {
        "label": label,
        "values": codes,
        "tickvals": list(range(len(texts))),
        "ticktext": [chart_text(text) for text in texts],
    }
