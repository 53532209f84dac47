"""How a generation and how a calibration flow, as a picture: writes images/architecture.png beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

WIDTH, HEIGHT = 18.0, 12.4  # of the drawing, in its own units; two of them are an inch
INK = "#1f2933"
WORD: Any = {"fontsize": 9, "color": "#52606d", "style": "italic"}
FLOORS = {
    "dashboard": ("#f3eefb", "#7b5ea7"),
    "calibrate": ("#eaf2fb", "#2f6aa8"),
    "scope_runtime": ("#e9f6ee", "#2c7d4f"),
}


def draw() -> Figure:
    """The whole picture, 9 by 6.2 inches."""
    figure = Figure(figsize=(WIDTH / 2, HEIGHT / 2), dpi=200, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.set_axis_off()
    _dashboard(axes)
    _calibration(axes)
    _generation(axes)
    # From floor to floor.
    _arrow(axes, (10.1, 10.4), (10.1, 11.3), "read")
    axes.plot((10.1, 10.1, 1.65, 1.65), (4.7, 3.05, 3.05, 2.9), color=INK, lw=1.3)
    _arrow(axes, (1.65, 3.0), (1.65, 2.55))
    axes.text(9.9, 3.2, "every candidate goes the way that production goes", **WORD, ha="right", va="bottom")
    _arrow(axes, (15.6, 4.75), (15.6, 3.15))
    return figure


def _dashboard(axes: Axes) -> None:
    _floor(axes, "dashboard", 11.1, 12.2)
    axes.text(
        9.0, 11.65, "pages over plain functions; nothing here writes", ha="center", va="center", fontsize=10, color=INK
    )


def _calibration(axes: Axes) -> None:
    colour = _floor(axes, "calibrate", 4.25, 10.85)
    _room(axes, (3.9, 9.55, 13.7, 0.85), "store", "SQL: studies, generations, trials, profiles", colour, one_line=True)
    _room(axes, (0.4, 7.1, 2.5, 1.55), "study", "the YAML,\nchecked whole", colour)
    _room(axes, (3.9, 7.1, 3.2, 1.55), "baselines", "stock and exact runs,\nwith their traces", colour)
    _room(
        axes, (8.1, 7.1, 4.0, 1.55), "search: the driver", "proposes, records, tells;\nowns budget and database", colour
    )
    _room(axes, (13.6, 7.1, 4.0, 1.55), "export", "picks one, measures it\non held-out prompts", colour)
    for start, end in ((2.9, 3.9), (7.1, 8.1), (12.1, 13.6)):
        _arrow(axes, (start, 7.9), (end, 7.9))
    for x in (5.5, 10.1, 15.6):
        _arrow(axes, (x, 8.65), (x, 9.55), "record" if x == 10.1 else "")
    _room(axes, (8.1, 4.75, 4.0, 1.4), "pool", "here, or Ray actors:\nmeasure(policy, case)", colour)
    _arrow(axes, (9.0, 7.1), (9.0, 6.15), "job", side="left")
    _arrow(axes, (11.2, 6.15), (11.2, 7.1), "measurement")
    _room(axes, (14.1, 4.75, 3.0, 1.4), "profile", "policy, settings,\nmodel, evidence", colour)
    _arrow(axes, (15.6, 7.1), (15.6, 6.15))
    helpers = {
        "measure": "a generation as a record",
        "families": "a model, loaded: the target",
        "replay": "what needs no run",
        "results": "front, rules, floors",
        "quality": "one clip against another",
        "spec": "the parts of a study",
    }
    _box(axes, (0.4, 4.45, 6.7, 2.4), colour)
    for line, (room, what) in enumerate(helpers.items()):
        y = 6.57 - 0.37 * line
        axes.text(0.65, y, room, va="center", fontsize=9.5, color=INK, weight="bold")
        axes.text(2.35, y, what, va="center", fontsize=9.5, color=INK)


def _generation(axes: Axes) -> None:
    colour = _floor(axes, "scope_runtime", 0.2, 4.0)
    _room(axes, (0.4, 1.0, 2.5, 1.55), "pipeline", "a call: one\ngeneration", colour)
    _room(axes, (3.9, 1.0, 3.2, 1.55), "adapter", "looks at what runs;\nplan and rows", colour)
    _room(axes, (8.1, 1.0, 4.0, 1.55), "engine", "one row: decide, compute,\npredict or reuse", colour)
    for name, what, y in (
        ("policy", "a mode per block", 2.35),
        ("prediction", "extrapolation", 1.4),
        ("context", "K/V of the others", 0.45),
    ):
        _room(axes, (13.6, y, 4.0, 0.8), name, what, colour, one_line=True)
        _arrow(axes, (12.1, 1.75 + 0.25 * (y - 1.4)), (13.6, y + 0.4), both=True)
    for start, end in ((2.9, 3.9), (7.1, 8.1)):
        _arrow(axes, (start, 2.1), (end, 2.1))
        _arrow(axes, (end, 1.45), (start, 1.45))


def _floor(axes: Axes, name: str, bottom: float, top: float) -> str:
    """A floor over the whole width; returns the colour of its lines."""
    fill, line = FLOORS[name]
    shape = "round,pad=0,rounding_size=0.15"
    axes.add_patch(FancyBboxPatch((0.15, bottom), WIDTH - 0.3, top - bottom, boxstyle=shape, fc=fill, ec="none"))
    axes.text(0.4, top - 0.2, name, va="top", fontsize=12.5, color=line, weight="bold", family="monospace")
    return line


def _box(axes: Axes, place: tuple[float, float, float, float], colour: str) -> None:
    x, y, width, height = place
    shape = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, fc="white", ec=colour, lw=1.2))


def _room(
    axes: Axes,
    place: tuple[float, float, float, float],
    name: str,
    what: str,
    colour: str,
    *,
    one_line: bool = False,
) -> None:
    """A room with its name and what it does; ``place`` is x, y, width and height."""
    x, y, width, height = place
    _box(axes, place, colour)
    middle = x + width / 2
    if one_line:
        axes.text(x + 0.25, y + height / 2, name, va="center", fontsize=10.5, color=INK, weight="bold")
        axes.text(x + width - 0.25, y + height / 2, what, ha="right", va="center", fontsize=9, color=INK)
        return
    axes.text(middle, y + height - 0.15, name, ha="center", va="top", fontsize=10.5, color=INK, weight="bold")
    axes.text(middle, y + 0.15, what, ha="center", va="bottom", fontsize=9, color=INK, linespacing=1.25)


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    word: str = "",
    *,
    side: str = "right",
    both: bool = False,
) -> None:
    """An arrow, with a word on one side of it."""
    style = "<|-|>" if both else "-|>"
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=11, lw=1.3, color=INK, shrinkA=2, shrinkB=2)
    )
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    if side == "right":
        axes.text(x + 0.15, y, word, ha="left", va="center", **WORD)
    else:
        axes.text(x - 0.15, y, word, ha="right", va="center", **WORD)


if __name__ == "__main__":
    draw().savefig(Path(__file__).parent / "images" / "architecture.png")
