"""The trade-off between speed and quality, and the policy that is selected on it."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from calibrate.display.data import front
from calibrate.display.front import study_front
from calibrate.display.wording import (
    KINDS,
    front_note,
    headline,
    kind_remark,
    plain,
    policy_sentence,
    promise_changed,
    promise_columns,
    promise_note,
    promise_passed,
    sentence,
)
from calibrate.results.promise_table import PromiseTable
from calibrate.results.promises import told
from calibrate.results.result import Result, told_preparation
from calibrate.spec.score_floor import score_figure
from dashboard.page import POLICY, Page, select_trial, tiles

_CHART = "front_chart"


def show(page: Page) -> None:
    """Draws the view."""
    data = page.data
    st.markdown(f"## {plain(data.record.name)}")
    best = None if page.best is None else data.results[page.best]
    unseen = data.unseen.get(best.trial, data.told_unseen) if best is not None else None
    st.markdown(headline(best, int(page.holds.sum()), len(data.results), page.floors.with_margin, unseen))
    if data.points.empty:
        st.info(_nothing_yet(page))
        return
    result = page.result
    if result is not None:
        fastest = ": the fastest above the floors" if result.trial == page.best else " (selected)"
        kind = kind_remark(data, result)
        st.markdown(f"##### Trial {result.trial}{f', {plain(kind)}' if kind else ''}{fastest}")
        tiles(page, result)
    chart, side = st.columns([3, 1], gap="medium")
    with chart:
        _draw_chart(page)
    if result is not None:
        with side:
            _draw_selected(page, result)
    _draw_table(page)
    if data.promises is not None:
        _draw_promises(data.promises)


def trade_off(page: Page) -> go.Figure:
    """The chart of a page, drawn once for all who look at the same."""
    floors = page.floors.model_dump_json()
    data, axes = page.data, (page.speed.key, page.quality.key)
    shown = data.record.name, data.metric_version, page.heartbeat, axes, floors, page.trial, page.best
    return _drawn(page, page.url, shown, page.colours.text)


@st.cache_resource(max_entries=8, show_spinner=False)
def _drawn(_page: Page, url: str, shown: tuple[Any, ...], colour: str) -> go.Figure:
    """The chart of a page, under everything that it depends on."""
    return study_front(
        _page.data, _page.floors, _page.speed, _page.quality, _page.colours, selected=_page.trial, best=_page.best
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
    st.caption(f"{front_note(page.data, page.quality)} Click a point to select it.")


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


def _draw_table(page: Page) -> None:
    """The points of the line in numbers."""
    line = front(page.data.points[page.holds], page.speed.key, page.quality.key)
    if line.empty:
        return
    st.markdown("#### The best trade-offs")
    results = [page.data.results.get(trial) for trial in line["trial"]]
    prepared = [told_preparation(result.preparation) if result else "" for result in results]
    decibel, factor = st.column_config.NumberColumn(format="%.1f dB"), st.column_config.NumberColumn(format="%.2fx")
    st.dataframe(
        pd.DataFrame(
            {
                "trial": line["trial"],
                "kind": [KINDS[kind] for kind in line["kind"]],
                **({"set up": prepared} if page.data.study.search.prepares else {}),
                "evaluations": line["speedup_evaluations"],
                "denoising": line["speedup_denoise"],
                "PSNR, mean": line["psnr_db"],
                "PSNR, worst": line["psnr_worst_prompt_db"],
                "SSIM": line["ssim"],
                **{name: line[score_figure(name, "mean")] for name in page.floors.scores},
            }
        ),
        hide_index=True,
        column_config={
            "kind": st.column_config.TextColumn(
                help="What decides when a block is computed: thresholds, or a frozen plan with learned weights"
            ),
            "evaluations": factor,
            "denoising": factor,
            "PSNR, mean": decibel,
            "PSNR, worst": decibel,
            "SSIM": st.column_config.NumberColumn(format="%.4f"),
        },
    )


def _draw_promises(table: PromiseTable) -> None:
    """What can be promised of prompts that nobody has seen: the study's wish, and others."""
    st.markdown("#### What can be promised")
    st.markdown(
        f"The study asks{promise_changed(table)}: {plain(told(table.wish, len(table.cases)))} "
        f"**{promise_passed(table)}**"
    )
    st.dataframe(pd.DataFrame(promise_columns(table)), hide_index=True)
    st.caption(promise_note(table))
    if table.likeness is not None:
        (st.caption if table.likeness.alike else st.warning)(plain(sentence(table.likeness.told())))


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
