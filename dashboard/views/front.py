"""The trade-off between speed and quality, and the policy that is selected on it."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import streamlit as st

from calibrate.quality import metric_version
from calibrate.results import Result
from dashboard.page import POLICY, Page, select_trial, tiles
from dashboard.plots.front import HeldOut, Reference, front_figure
from dashboard.wording import headline, plain, policy_sentence

_CHART = "front_chart"


def show(page: Page) -> None:
    """Draws the view."""
    data = page.data
    st.markdown(f"## {plain(data.record.name)}")
    best = None if page.best is None else data.results[page.best]
    st.markdown(headline(best, int(page.holds.sum()), len(data.results), page.floors.with_margin))
    if data.points.empty:
        st.info(_nothing_yet(page))
        return
    result = page.result
    if result is not None:
        fastest = ": the fastest above the floors" if result.trial == page.best else " (selected)"
        st.markdown(f"##### Trial {result.trial}{fastest}")
        tiles(page, result)
    chart, side = st.columns([3, 1], gap="medium")
    with chart:
        _draw_chart(page)
    if result is not None:
        with side:
            _draw_selected(page, result)


def trade_off(page: Page) -> go.Figure:
    """The chart of a page, drawn once for all who look at the same."""
    floors = page.floors.model_dump_json()
    data, axes = page.data, (page.speed.key, page.quality.key)
    shown = data.record.name, data.metric_version, page.heartbeat, axes, floors, page.trial, page.best
    return _drawn(page, page.url, shown, page.colours.text)


@st.cache_resource(max_entries=8, show_spinner=False)
def _drawn(_page: Page, url: str, shown: tuple[Any, ...], colour: str) -> go.Figure:
    """The chart of a page, under everything that it depends on."""
    page, data = _page, _page.data
    references = [Reference("stock", 1.0, "square")]
    if page.speed.key in data.exact_speedup:
        references.append(Reference("exact", data.exact_speedup[page.speed.key], "diamond-wide"))
    exported = [
        HeldOut(int(record.trial_number), float(evidence[page.speed.key]), float(evidence[page.quality.key]))
        for record in data.profiles
        if {page.speed.key, page.quality.key} <= (evidence := record.profile["evidence"]).keys()
        and metric_version(evidence) == data.metric_version
    ]
    floors = page.floors.demands(margin=True)
    return front_figure(
        data.points,
        page.holds,
        page.speed,
        page.quality,
        page.colours,
        selected=page.trial,
        best=page.best,
        floor=floors.get(page.quality.key),
        floor_text=page.floors.told(page.quality.key, margin=True) if page.quality.key in floors else "",
        references=references,
        held_out=exported,
        policies={number: result.policy for number, result in data.results.items()},
    )


def _draw_chart(page: Page) -> None:
    st.plotly_chart(
        trade_off(page),
        theme=None,
        key=_CHART,
        on_select=_clicked,
        selection_mode="points",
        config={"displaylogo": False},
    )
    note = (
        "Each point is one policy, measured by real generations: **right is faster, up is closer to the stock video**. "
    )
    note += "Click a point to select it. Of many points, those that would cover each other are drawn once."
    if page.quality.key == "psnr_db":
        note += " Bars reach down to the worst prompt."
    st.caption(note)


def _draw_selected(page: Page, result: Result) -> None:
    st.markdown(policy_sentence(result.policy))
    if result.stopped:
        st.markdown(f":orange[{plain(result.stopped)}.]")
    st.button(
        "Clips and profile",
        type="primary",
        icon=":material/movie:",
        width="stretch",
        on_click=select_trial,
        args=(result.trial, POLICY),
    )
    if page.best is not None and result.trial != page.best:
        st.button("Back to the fastest", width="stretch", on_click=select_trial, args=(page.best,))


def _clicked() -> None:
    points = st.session_state[_CHART].selection.points
    if points and points[0].get("customdata") is not None:
        select_trial(int(points[0]["customdata"]))


def _nothing_yet(page: Page) -> str:
    states = page.data.states
    if states.get("running"):
        return "The first candidates are being generated; this page refreshes by itself."
    if page.data.failures:
        number, reason = next(iter(page.data.failures.items()))
        return f"All {len(page.data.failures)} candidates failed; the first (trial {number}): {plain(reason)}"
    return "This study has no trials yet: its baselines come first. Continue it with `scope-calibrate run`."
