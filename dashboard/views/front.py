"""The trade-off between speed and quality, and the policy that is selected on it."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from calibrate.quality.metrics import metric_version
from calibrate.results.promise_table import PromiseTable
from calibrate.results.promises import told
from calibrate.results.result import Result, told_preparation
from calibrate.spec.score_floor import score_figure
from dashboard.data import front
from dashboard.page import POLICY, Page, select_trial, tiles
from dashboard.plots.front import HeldOut, Reference, front_figure
from dashboard.wording import KINDS, headline, kind_remark, plain, policy_sentence, promised_cell, prompts

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
    page, data = _page, _page.data
    references = [Reference("stock", 1.0, "square")]
    if page.speed.key in data.exact_speedup:
        references.append(Reference("exact", data.exact_speedup[page.speed.key], "diamond-wide"))
    exported = [
        HeldOut(int(record.trial_number), float(evidence[page.speed.key]), float(evidence[page.quality.key]))
        for record in data.profiles
        if {page.speed.key, page.quality.key} <= (evidence := record.profile["evidence"]).keys()
        and isinstance(evidence[page.quality.key], int | float)
        and metric_version(evidence) == data.metric_version
    ]
    floors = page.floors.demands(margin=True)
    told = {name: page.floors.told(name, margin=True) for name in floors}
    for demand in page.floors.score_demands():
        if demand.sign > 0:
            floors[demand.figure], told[demand.figure] = demand.value, demand.told
    return front_figure(
        data.points,
        page.holds,
        page.speed,
        page.quality,
        page.colours,
        selected=page.trial,
        best=page.best,
        floor=floors.get(page.quality.key),
        floor_text=told.get(page.quality.key, ""),
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
    if len(page.data.kinds) > 1:
        note += " Circles and crosses are thresholds, triangles are plans with learned weights."
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
    best = table.best
    passed = "No policy has passed." if best is None else f"Trial {best.trial} passed: {best.speedup:.2f}x."
    changed = "" if table.declared else " (changed after policies were tested, and corrected for that)"
    st.markdown(f"The study asks{changed}: {plain(told(table.wish, len(table.cases)))} **{passed}**")
    floors = sorted({cell.floor_db for cell in table.cells})
    columns = {"every prompt's PSNR": [f"{floor:g} dB" for floor in floors]}
    columns |= {
        f"{share:g} of prompts": [
            "the study asks for it" if cell is None else promised_cell(cell, len(table.cases))
            for cell in (table.cell(floor, share) for floor in floors)
        ]
        for share in sorted({cell.promise.share for cell in table.cells})
    }
    st.dataframe(pd.DataFrame(columns), hide_index=True)
    st.caption(
        f"Measured on {prompts(len(table.cases), 'guarantee ')}: the fastest policy that passes an exact test with "
        f"confidence {table.wish.confidence:.4g}. With a star, the fastest that does with "
        f"{table.corrected_confidence:.4g}, which is corrected for picking one of {table.corrected_for} promises after "
        "looking; `scope-calibrate export --promise FLOOR,SHARE` takes that one."
    )
    if table.likeness is not None:
        said = table.likeness.told()
        (st.caption if table.likeness.alike else st.warning)(plain(f"{said[0].upper()}{said[1:]}."))


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
