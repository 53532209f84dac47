"""The trade-off: speed-up against quality, one point per policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from calibrate.display import wording
from calibrate.display.data import StudyData, feasible, front
from calibrate.display.measures import Measure
from calibrate.display.theme import SERIES, Palette, figure
from calibrate.display.wording import chart_text
from calibrate.quality.metrics import metric_version
from calibrate.results.result import KINDS, LEARNED, THRESHOLDS, Kind
from calibrate.spec.floors import Floors

# Of more points than this, those that would cover each other are drawn once: on a grid of so many columns and rows.
_CROWD = 1500
_COLUMNS, _ROWS = 70, 40
_HEIGHT = 520
_HOVERED = (
    "warmup", "max_skip", "tail", "order", "axis", "cache_threshold", "predict_threshold", "granularity", "indicator",
)  # fmt: skip
_OF_FIRST_WINDOW = ("warmup", "max_skip")


# Shapes tell the kinds apart, filled and for what is below a floor.
_SHAPES: Mapping[Kind, tuple[str, str]] = {THRESHOLDS: ("circle", "x"), LEARNED: ("triangle-up", "triangle-up-open")}


@dataclass(frozen=True)
class Reference:
    """A point that needs no policy: it equals stock.

    Attributes:
        name: In the legend.
        speed: Its speed-up.
        symbol: Plotly's name of the marker.
    """

    name: str
    speed: float
    symbol: str


@dataclass(frozen=True)
class HeldOut:
    """What the export of a trial measured on prompts that the search never saw."""

    trial: int
    speed: float
    quality: float


def front_figure(
    points: pd.DataFrame,
    feasible: pd.Series,
    speed: Measure,
    quality: Measure,
    colours: Palette,
    *,
    selected: int | None = None,
    best: int | None = None,
    floor: float | None = None,
    floor_text: str = "",
    references: Sequence[Reference] = (),
    held_out: Sequence[HeldOut] = (),
    policies: Mapping[int, Mapping[str, object]] | None = None,
) -> go.Figure:
    """The front of one study. Every point carries its trial number as custom data.

    Args:
        points: See `calibrate.display.data.StudyData.points`.
        feasible: Which of them hold the floors.
        speed: The x axis.
        quality: The y axis.
        colours: Of the page.
        selected: The trial to ring.
        best: The fastest trial above the floors, to be told apart whatever is selected.
        floor: A line at this quality.
        floor_text: What stands at the line.
        references: Stock and exact mode.
        held_out: Figures of exported trials.
        policies: By trial number, what hovering shows of each policy.
    """
    made = figure(colours, speed.label, quality.label, _HEIGHT)
    points = points.dropna(subset=[speed.key, quality.key])
    feasible = feasible.reindex(points.index)
    line = front(points[feasible], speed.key, quality.key)
    below = points[~feasible & ~points["estimated"]]
    above = points[feasible & ~points.index.isin(line.index)]
    estimated = points[points["estimated"]]
    groups: list[tuple[pd.DataFrame, str, dict[str, object]]] = []
    for kind, told in _told_apart(points).items():
        filled, hollow = _SHAPES[kind]
        groups += [
            (
                below[below["kind"] == kind],
                f"below a floor{told}",
                {"symbol": hollow, "color": colours.muted, "size": 7, "opacity": 0.7},
            ),
            (
                above[above["kind"] == kind],
                f"above the floors{told}",
                {"symbol": filled, "color": colours.feasible, "size": 8, "opacity": 0.45},
            ),
        ]
    hollow_dot: dict[str, object] = {"symbol": "circle-open", "color": colours.muted, "size": 8}
    groups.insert(1, (estimated, "estimate, not measured", hollow_dot))
    for group, name, marker in groups:
        if len(group):
            shown = _apart(group, speed, quality)
            made.add_trace(_points(shown, f"{name} ({len(group):,})", marker, speed, quality, policies))
    _add_line(made, line, _told_apart(points), speed, quality, colours, policies)
    _add_references(made, references, points, quality, speed, colours)
    if held_out:
        made.add_trace(_held_out(held_out, colours))
    star = {"symbol": "star", "size": 17, "color": colours.chosen, "line": {"width": 1, "color": colours.text}}
    _add_mark(made, points[points["trial"] == best], "fastest above the floors", star, speed, quality)
    ring = {"symbol": "circle-open", "size": 24, "color": colours.chosen, "line": {"width": 3}}
    _add_mark(made, points[points["trial"] == selected], f"selected: trial {selected}", ring, speed, quality)
    if floor is not None:
        made.add_hline(y=floor, line={"color": colours.muted, "dash": "dash", "width": 1})
        made.add_annotation(
            x=1, xref="paper", y=floor, text=floor_text, showarrow=False, yshift=-10,
            xanchor="right", font={"color": colours.muted, "size": 12},
        )  # fmt: skip
    made.update_layout(
        clickmode="event+select", dragmode="zoom", hovermode="closest", uirevision=f"{speed.key}{quality.key}"
    )
    return made


def study_front(
    data: StudyData,
    floors: Floors,
    speed: Measure,
    quality: Measure,
    colours: Palette,
    *,
    selected: int | None,
    best: int | None,
) -> go.Figure:
    """The front of a study with all that is known beside it: stock and exact mode, floors, exports.

    Args:
        data: The study.
        floors: Its own, or others that are tried out.
        speed: The x axis.
        quality: The y axis.
        colours: Of the page.
        selected: The trial to ring.
        best: The fastest trial above the floors.
    """
    references = [Reference("stock", 1.0, "square")]
    if speed.key in data.exact_speedup:
        references.append(Reference("exact", data.exact_speedup[speed.key], "diamond-wide"))
    exported = [
        HeldOut(int(record.trial_number), float(evidence[speed.key]), float(evidence[quality.key]))
        for record in data.profiles
        if {speed.key, quality.key} <= (evidence := record.profile["evidence"]).keys()
        and isinstance(evidence[quality.key], int | float)
        and metric_version(evidence) == data.metric_version
    ]
    asked = floors.demands(margin=True)
    told = {name: floors.told(name, margin=True) for name in asked}
    for demand in floors.score_demands():
        if demand.sign > 0:
            asked[demand.figure], told[demand.figure] = demand.value, demand.told
    return front_figure(
        data.points,
        feasible(data.points, floors),
        speed,
        quality,
        colours,
        selected=selected,
        best=best,
        floor=asked.get(quality.key),
        floor_text=told.get(quality.key, ""),
        references=references,
        held_out=exported,
        policies={number: result.policy for number, result in data.results.items()},
    )


def compared_fronts(
    fronts: Mapping[str, pd.DataFrame], speed: Measure, quality: Measure, colours: Palette
) -> go.Figure:
    """The fronts of several studies in one plot, by study name."""
    made = figure(colours, speed.label, quality.label, 420)
    symbols = ("circle", "square", "diamond", "triangle-up", "x", "star")
    for number, (name, points) in enumerate(fronts.items()):
        made.add_trace(
            go.Scatter(
                x=points[speed.key],
                y=points[quality.key],
                name=chart_text(name),
                mode="lines+markers",
                customdata=points["trial"].to_numpy(),
                text=[f" ({wording.KINDS[LEARNED]})" if kind == LEARNED else "" for kind in points["kind"]],
                marker={"symbol": symbols[number % len(symbols)], "size": 10},
                line={"color": SERIES[number % len(SERIES)], "width": 2},
                hovertemplate=f"<b>{chart_text(name)}</b>, trial %{{customdata}}%{{text}}<br>"
                f"%{{x:.2f}}x, %{{y:{quality.form}}}<extra></extra>",
            )
        )
    return made


def _told_apart(points: pd.DataFrame) -> dict[Kind, str]:
    """The kinds of policies that there are, with what is added to the names of their points."""
    kinds = [kind for kind in KINDS if (points["kind"] == kind).any()]
    return {kind: "" if kinds == [THRESHOLDS] else f", {wording.KINDS[kind]}" for kind in kinds}


def _add_line(
    made: go.Figure,
    line: pd.DataFrame,
    told_apart: Mapping[Kind, str],
    speed: Measure,
    quality: Measure,
    colours: Palette,
    policies: Mapping[int, Mapping[str, object]] | None,
) -> None:
    """The best trade-offs: a line through them, and on it the points of each kind in its shape."""
    if len(told_apart) > 1 and len(line):
        made.add_trace(
            go.Scatter(
                x=line[speed.key].to_numpy(), y=line[quality.key].to_numpy(), mode="lines", showlegend=False,
                line={"color": colours.feasible, "width": 2}, hoverinfo="skip",
            )
        )  # fmt: skip
    for kind, told in told_apart.items():
        own = line[line["kind"] == kind]
        if len(own):
            dot = {
                "symbol": _SHAPES[kind][0],
                "color": colours.feasible,
                "size": 11 if kind == THRESHOLDS else 13,
                "line": {"width": 1, "color": colours.text},
            }
            trace = _points(own, f"best trade-offs{told} ({len(own)})", dot, speed, quality, policies)
            trace.update(error_y=_to_worst(own, quality, colours))
            if len(told_apart) == 1:
                trace.update(mode="lines+markers", line={"color": colours.feasible, "width": 2})
            made.add_trace(trace)


def _points(
    group: pd.DataFrame,
    name: str,
    marker: Mapping[str, object],
    speed: Measure,
    quality: Measure,
    policies: Mapping[int, Mapping[str, object]] | None,
) -> go.Scatter:
    text = None if policies is None else [_policy_lines(policies.get(trial, {})) for trial in group["trial"]]
    return go.Scatter(
        x=group[speed.key].to_numpy(),
        y=group[quality.key].to_numpy(),
        mode="markers",
        name=name,
        marker=dict(marker),
        customdata=group["trial"].to_numpy(),
        text=text,
        hovertemplate=f"<b>trial %{{customdata}}</b>: %{{x:.2f}}x, %{{y:{quality.form}}}"
        + ("<br>%{text}" if text else "")
        + "<extra></extra>",
        # What is not selected must not fade: the ring shows what is.
        selected={"marker": {"opacity": marker.get("opacity", 1.0)}},
        unselected={"marker": {"opacity": marker.get("opacity", 1.0)}},
    )


def _apart(group: pd.DataFrame, speed: Measure, quality: Measure) -> pd.DataFrame:
    """Points of which no two cover each other; all of them where they are few."""
    if len(group) <= _CROWD:
        return group
    cells = [pd.cut(group[key], bins, labels=False) for key, bins in ((speed.key, _COLUMNS), (quality.key, _ROWS))]
    return group[~pd.DataFrame({"x": cells[0], "y": cells[1]}).duplicated()]


def _policy_lines(policy: Mapping[str, object]) -> str:
    def shown(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else "never" if value is None else chart_text(value)

    weights = policy.get("gap_weights")
    if isinstance(weights, Mapping):
        captures = shown(policy.get("captures", "clean"))
        return f"learned weights<br>outputs combined: {shown(weights.get('depth'))}<br>captures: {captures}"
    lines = [f"{name.replace('_', ' ')}: {shown(policy[name])}" for name in _HOVERED if name in policy]
    first = policy.get("first_window")
    if isinstance(first, Mapping):
        lines += [f"{name.replace('_', ' ')} of the first window: {shown(first[name])}" for name in _OF_FIRST_WINDOW]
    return "<br>".join(lines)


def _to_worst(points: pd.DataFrame, quality: Measure, colours: Palette) -> dict[str, object] | None:
    """Bars from the mean down to the worst prompt, where the y axis is the mean PSNR."""
    if quality.key != "psnr_db":
        return None
    down = (points["psnr_db"] - points["psnr_worst_prompt_db"]).to_numpy()
    return {
        "type": "data", "symmetric": False, "array": np.zeros_like(down), "arrayminus": down, "thickness": 1,
        "width": 4, "color": colours.feasible,
    }  # fmt: skip


def _add_references(
    made: go.Figure,
    references: Sequence[Reference],
    points: pd.DataFrame,
    quality: Measure,
    speed: Measure,
    colours: Palette,
) -> None:
    """Stock and exact mode. Where equal clips have an infinite figure, they stand at the upper edge."""
    top = quality.best if quality.best is not None else float(points[quality.key].max()) + 1.5 if len(points) else 50.0
    for reference in references:
        made.add_trace(
            go.Scatter(
                x=[reference.speed],
                y=[top],
                mode="markers+text",
                name=reference.name,
                text=[reference.name],
                textposition="bottom center",
                textfont={"size": 12, "color": colours.reference},
                marker={"symbol": reference.symbol, "size": 12, "color": colours.reference},
                hovertemplate=f"<b>{reference.name}</b>: {reference.speed:.2f}x, the stock video itself"
                + (" (infinite PSNR, drawn at the edge)" if quality.best is None else "")
                + "<extra></extra>",
                showlegend=False,
            )
        )


def _held_out(held_out: Sequence[HeldOut], colours: Palette) -> go.Scatter:
    return go.Scatter(
        x=[h.speed for h in held_out],
        y=[h.quality for h in held_out],
        customdata=[h.trial for h in held_out],
        mode="markers",
        name="exported: held-out prompts",
        marker={
            "symbol": "diamond",
            "size": 13,
            "color": colours.held_out,
            "line": {"width": 1, "color": colours.text},
        },
        hovertemplate="<b>trial %{customdata}</b> on held-out prompts: %{x:.2f}x, %{y:.4g}<extra></extra>",
    )


def _add_mark(
    made: go.Figure,
    point: pd.DataFrame,
    name: str,
    marker: Mapping[str, object],
    speed: Measure,
    quality: Measure,
) -> None:
    """A mark on one point that is drawn already; nothing where there is none."""
    if len(point):
        made.add_trace(
            go.Scatter(
                x=point[speed.key], y=point[quality.key], mode="markers", name=name, marker=dict(marker),
                hoverinfo="skip",
            )
        )  # fmt: skip
