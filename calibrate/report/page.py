"""The report as one HTML file: no network, at most 20 MB."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from calibrate.display.data import best_point
from calibrate.display.front import study_front
from calibrate.display.measures import SPEED, quality_measures
from calibrate.display.mode_map import mode_map
from calibrate.display.theme import DARK, LIGHT, Palette
from calibrate.display.trial import block_quality
from calibrate.display.wording import (
    front_note,
    modes_note,
    plan_note,
    promise_changed,
    promise_columns,
    promise_note,
    promise_passed,
    sentence,
)
from calibrate.report import sections
from calibrate.report.clips import Clip, fitting
from calibrate.report.content import Content, Measurement
from calibrate.results.promise_table import PromiseTable
from calibrate.results.promises import told
from calibrate.store import CANDIDATE
from calibrate.study.outputs import REPORT_MARK

MOST_BYTES = 20_000_000
# Of a clip's data address and its element, beside the clip itself.
_AROUND_CLIP = 2048
_LABEL = 38

_EMPHASIS = re.compile(r"\*\*(.+?)\*\*")
_CODE = re.compile(r"`(.+?)`")

Draw = Callable[[Palette], go.Figure]


@dataclass(frozen=True)
class Drawing:
    """A figure with what is said of it.

    Attributes:
        key: Its name on the page.
        title: What it shows.
        draw: Draws it in the colours of a light or a dark page.
        note: How to read it.
    """

    key: str
    title: str
    draw: Draw
    note: str


def page(content: Content) -> bytes:
    """The file. Clips that would make it larger than `MOST_BYTES` are left out, the largest first, and named."""
    drawings = [drawing for drawing in (front(content), modes(content), blocks(content)) if drawing is not None]
    figures = {d.key: {"light": _plain(d.draw(LIGHT)), "dark": _plain(d.draw(DARK))} for d in drawings}
    render = partial(_render, content, drawings, figures)
    without = render((), content.clips)
    kept, left = fitting(content.clips, (MOST_BYTES - len(without)) * 3 // 4 - _AROUND_CLIP * len(content.clips))
    return render(kept, left)


def front(content: Content) -> Drawing | None:
    """All policies that were measured, if the study's records are there."""
    data, study = content.data, content.study
    if data is None or study is None:
        return None
    speed, quality = SPEED[data.speed], quality_measures(data.metric_version)["psnr_db"]

    best = best_point(data.points, study.floors, speed.key)
    selected = None if content.trial == best else content.trial

    def draw(colours: Palette) -> go.Figure:
        return study_front(data, study.floors, speed, quality, colours, selected=selected, best=best)

    return Drawing("front", "The trade-off", draw, front_note(data, quality))


def modes(content: Content) -> Drawing | None:
    """What each block did, on the worst prompt that no choice has seen; else the plan, where there is one."""
    shown = [one for one in content.measured if one[1].get("modes")]
    if shown:
        row, detail = _worst(shown)
        kind = "search" if row.kind == CANDIDATE else "held-out"
        note = f"The worst {kind} prompt, {row.prompt} (seed {row.seed}). {modes_note(row, detail)}"
        return Drawing("modes", "What each block did", lambda colours: mode_map(detail["modes"], colours), note)
    policy = content.profile.policy if content.profile else None
    if policy is None or (plan := policy.plan) is None:
        return None
    note = plan_note(policy) if policy.gap_weights else "R: the block is computed. P: predicted. C: reused."
    return Drawing("modes", "The plan", lambda colours: mode_map(plan, colours), note)


def blocks(content: Content) -> Drawing | None:
    """How quality goes over the video, prompt by prompt."""
    shown = [(row, detail) for row, detail in content.measured if detail.get("block_psnr_db")]
    if content.profile is not None:
        shown = [one for one in shown if one[0].kind != CANDIDATE] or shown
    if not shown:
        return None
    by_case = {
        f"{row.prompt[:_LABEL]} ({row.seed})": dict(zip(detail["block_ends"], detail["block_psnr_db"], strict=True))
        for row, detail in shown
    }
    floor = content.study.floors.psnr_worst_block_db if content.study else None
    note = "PSNR of every block's frames against stock's, prompt by prompt."
    return Drawing("blocks", "Quality over the video", lambda colours: block_quality(by_case, floor, colours), note)


def _worst(measured: Sequence[Measurement]) -> Measurement:
    """The prompt that comes out worst; a held-out one where there is one."""
    unseen = [one for one in measured if one[0].kind != CANDIDATE] or measured
    return min(unseen, key=lambda one: (one[0].metrics or {}).get("psnr_db", 0.0))


def _render(
    content: Content,
    drawings: Sequence[Drawing],
    figures: Mapping[str, Any],
    clips: Sequence[Clip],
    left_out: Sequence[Clip],
) -> bytes:
    plotly, code = _script(get_plotlyjs()), _script(_resource("page.js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["told"] = _told
    template = environment.from_string(_resource("page.html"))
    table = content.data.promises if content.data else None
    return template.render(
        mark=REPORT_MARK,
        content=content,
        sections=sections,
        drawings=drawings,
        # No text in it can end the element that it stands in.
        figures=json.dumps(figures).replace("<", "\\u003c"),
        plotly=plotly if drawings else "",
        code=code,
        policy=_policy(plotly, code),
        style=_resource("page.css"),
        clips=[(clip.told, _data_address(clip)) for clip in clips],
        left_out=[clip.told for clip in left_out],
        promises=None if table is None else _promises(table),
    ).encode()


def _promises(table: PromiseTable) -> dict[str, Any]:
    """The promise table of a study, in words."""
    columns = promise_columns(table)
    return {
        "asked": f"The study asks{promise_changed(table)}: {told(table.wish, len(table.cases))}",
        "passed": promise_passed(table),
        "table": sections.Table("What can be promised", list(columns), list(zip(*columns.values(), strict=True))),
        "note": promise_note(table),
        "likeness": "" if table.likeness is None else sentence(table.likeness.told()),
    }


def _told(text: str) -> Markup:
    """Text with its emphasis and code as elements, and nothing else of it."""
    emphasised = _EMPHASIS.sub(r"<strong>\1</strong>", str(escape(text)))
    return Markup(_CODE.sub(r"<code>\1</code>", emphasised))  # noqa: S704 - all of it is escaped


def _plain(figure: go.Figure) -> Any:
    return json.loads(figure.to_json())


def _script(text: str) -> str:
    """A program as browsers read it, by which they know it."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _policy(*scripts: str) -> str:
    """What the page may do: run just these programs, show what it holds itself, and fetch nothing."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; media-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _data_address(clip: Clip) -> str:
    return "data:video/mp4;base64," + base64.b64encode(clip.path.read_bytes()).decode()


def _resource(name: str) -> str:
    return files("calibrate.report").joinpath(name).read_text(encoding="utf-8")
