"""Colours and the common look of all figures. Colours are Okabe and Ito's, told apart by colour-blind readers too."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

# Several studies in one plot, in this order.
SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_FONT = '"Source Sans Pro", "Source Sans", system-ui, sans-serif'


@dataclass(frozen=True)
class Palette:
    """What each colour means, on a light or a dark page.

    Attributes:
        text: Labels.
        grid: Grid lines.
        muted: What is there but not offered: policies below the floors.
        ghost: Work that stock does and SCOPE leaves out.
        feasible: Policies above the floors.
        chosen: The selected policy.
        held_out: Figures on held-out prompts.
        reference: Stock and exact mode.
        recompute: Mode of a block.
        predict: Mode of a block.
        cache: Mode of a block.
        context: A pass that captures context.
    """

    text: str
    grid: str
    muted: str
    ghost: str
    feasible: str
    chosen: str
    held_out: str
    reference: str
    recompute: str
    predict: str
    cache: str
    context: str


LIGHT = Palette(
    text="#31333F", grid="#E6E8EC", muted="#9AA0A8", ghost="#E9EBEF", feasible="#0072B2", chosen="#D55E00",
    held_out="#009E73", reference="#31333F", recompute="#D55E00", predict="#0072B2", cache="#56B4E9", context="#CC79A7",
)  # fmt: skip
DARK = Palette(
    text="#E6E8EC", grid="#2B3039", muted="#767E8A", ghost="#39414D", feasible="#56B4E9", chosen="#E69F00",
    held_out="#00C08B", reference="#E6E8EC", recompute="#E07B39", predict="#3D9BD6", cache="#9AD4F5", context="#CC79A7",
)  # fmt: skip


def palette(dark: bool) -> Palette:
    """The colours for a dark or a light page."""
    return DARK if dark else LIGHT


def figure(colours: Palette, x: str, y: str, height: int) -> go.Figure:
    """An empty figure in the common look.

    Args:
        colours: Of the page.
        x: Label of the x axis, with its unit.
        y: Label of the y axis, with its unit.
        height: Pixels.
    """
    made = go.Figure()
    made.update_layout(
        height=height,
        margin={"l": 64, "r": 16, "t": 36, "b": 56},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": _FONT, "size": 14, "color": colours.text},
        legend={"orientation": "h", "x": 0, "y": 1.0, "xanchor": "left", "yanchor": "bottom"},
        hoverlabel={"align": "left", "font": {"family": _FONT, "size": 13}},
    )
    # Left to guess, an axis would take text in place of a number for a category, and show it.
    shared = {
        "type": "linear",
        "gridcolor": colours.grid,
        "linecolor": colours.grid,
        "zeroline": False,
        "ticks": "outside",
    }
    made.update_xaxes(title=x, tickcolor=colours.grid, **shared)
    made.update_yaxes(title=y, tickcolor=colours.grid, **shared)
    return made
