"""One policy from close by: quality over frames, prediction errors over rows, where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from calibrate.display.theme import SERIES, Palette, figure
from calibrate.display.wording import chart_text

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def frame_quality(by_case: Mapping[str, Sequence[float]], floor: float | None, colours: Palette) -> go.Figure:
    """PSNR of every frame against the stock frame, one line per case."""
    lines = {name: (range(len(values)), values) for name, values in by_case.items()}
    return _over_frames(lines, "frame", "linear", floor, colours)


def block_quality(by_case: Mapping[str, Mapping[int, float]], floor: float | None, colours: Palette) -> go.Figure:
    """PSNR of every block against the stock frames, one line per case.

    Args:
        by_case: By the frame after each block's last, block by block.
        floor: For the worst block.
        colours: Of the page.
    """
    # The last value is held up to the end of its block.
    lines = {name: ([0, *blocks], [*blocks.values(), *[*blocks.values()][-1:]]) for name, blocks in by_case.items()}
    return _over_frames(lines, "block", "hv", floor, colours)


def _over_frames(
    lines: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    part: str,
    shape: str,
    floor: float | None,
    colours: Palette,
) -> go.Figure:
    """Lines of PSNR over frames by case, each as x and y, and the floor of the worst frame or block."""
    made = figure(colours, "Frame", "PSNR against stock (dB)", 320)
    for number, (name, (frames, values)) in enumerate(lines.items()):
        made.add_trace(
            go.Scatter(
                x=list(frames),
                y=list(values),
                mode="lines",
                name=chart_text(name),
                line={
                    "color": SERIES[number % len(SERIES)],
                    "dash": _DASHES[number % len(_DASHES)],
                    "width": 2,
                    "shape": shape,
                },
                hovertemplate=f"{chart_text(name)}<br>{part} at frame %{{x}}: %{{y:.1f}} dB<extra></extra>",
            )
        )
    if floor is not None:
        made.add_hline(
            y=floor, line={"color": colours.muted, "dash": "dash", "width": 1}, annotation_text=f"worst-{part} floor"
        )
    made.update_layout(legend={"font": {"size": 12}})
    return made


def prediction_errors(errors: Sequence[Sequence[float]], colours: Palette) -> go.Figure:
    """What predicting would have got wrong at each recompute, over rows, one line per block.

    Args:
        errors: ``[row, block, order, relative error]`` each, and as a fifth element the error that was predicted
            beforehand, where there was one.
        colours: Of the page.
    """
    made = figure(colours, "Row of the schedule", "Relative error of a prediction", 340)
    said = False
    for block in sorted({int(e[1]) for e in errors}):
        own = [e for e in errors if e[1] == block]
        colour = SERIES[block % len(SERIES)]
        made.add_trace(
            go.Scatter(
                x=[e[0] for e in own],
                y=[e[3] for e in own],
                mode="lines+markers",
                name=f"block {block}",
                line={"color": colour, "width": 1.5},
                hovertemplate=f"row %{{x}}, block {block}: measured %{{y:.3g}}<extra></extra>",
            )
        )
        foreseen = [e for e in own if len(e) > 4]
        if foreseen:
            made.add_trace(
                go.Scatter(
                    x=[e[0] for e in foreseen],
                    y=[e[4] for e in foreseen],
                    mode="markers",
                    # One entry in the legend for all blocks: their colours are explained by the lines.
                    name="expected beforehand",
                    legendgroup="expected",
                    showlegend=not said,
                    legendrank=2000,
                    marker={"symbol": "circle-open", "color": colour, "size": 8},
                    hovertemplate=f"row %{{x}}, block {block}: expected %{{y:.3g}}<extra></extra>",
                )
            )
            said = True
    made.update_yaxes(type="log", dtick="D2", tickformat="~g")
    return made


def time_spent(seconds: Mapping[str, Mapping[str, float]], colours: Palette) -> go.Figure:
    """Seconds by stage, one bar per way of generating.

    Args:
        seconds: ``{"stock": {"denoising": ..., "decoding": ..., "encoding": ...}, ...}``, first on top.
        colours: Of the page.
    """
    made = figure(colours, "Seconds per clip, mean of the prompts", "", 90 + 48 * len(seconds))
    stages = list(dict.fromkeys(stage for by_stage in seconds.values() for stage in by_stage))
    shades = (colours.feasible, colours.cache, colours.muted)
    for stage, shade in zip(stages, shades, strict=False):
        values = [by_stage.get(stage, 0.0) for by_stage in seconds.values()]
        made.add_trace(
            go.Bar(
                y=list(seconds),
                x=values,
                name=stage,
                orientation="h",
                marker={"color": shade},
                text=[
                    f"{value:.2f} s" if value >= 0.05 * max(sum(s.values()) for s in seconds.values()) else ""
                    for value in values
                ],
                textposition="inside",
                hovertemplate=f"%{{y}}, {stage}: %{{x:.2f}} s<extra></extra>",
            )
        )
    made.update_layout(barmode="stack", bargap=0.3)
    made.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return made
