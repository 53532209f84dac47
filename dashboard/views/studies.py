"""All studies of the database, and the fronts of several in one plot."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from calibrate.store.browse import Overview
from dashboard import cache
from dashboard.data import StudyData, best_point, feasible, front
from dashboard.page import Page
from dashboard.plots.front import compared_fronts


def show(page: Page, overviews: Sequence[Overview]) -> None:
    """Draws the view."""
    st.markdown("## Studies")
    st.caption("One row per study: a model with its generation settings, and how far its search has come.")
    url = page.url
    data = {o.study.name: cache.study(page.storage, url, o.study.name, page.heartbeat) for o in overviews}
    table = pd.DataFrame([_row(overview, data[overview.study.name]) for overview in overviews])
    st.dataframe(
        table,
        hide_index=True,
        column_config={
            "searched": st.column_config.ProgressColumn("searched", format="percent", min_value=0, max_value=1),
            "best above floors": st.column_config.NumberColumn(
                format="%.2fx", help="Block evaluations, search prompts, with the safety margin"
            ),
            "at PSNR": st.column_config.NumberColumn(format="%.1f dB"),
            "last activity": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
            "generating": st.column_config.NumberColumn(format="%.1f min", help="Wall clock of all generations"),
        },
    )
    st.markdown("### Compare fronts")
    names = list(data)
    chosen = st.multiselect("Studies to compare", names, default=names[:3], key="compare", bind="query-params")
    fronts = {name: _front(data[name], page) for name in chosen}
    fronts = {name: points for name, points in fronts.items() if len(points)}
    if not fronts:
        st.info("None of these studies has a measured policy yet.")
        return
    st.plotly_chart(compared_fronts(fronts, page.speed, page.quality, page.colours), theme=None, key="compared")
    st.caption(
        "Only the best measured trade-offs of each study. Compare studies only where model and settings are alike."
    )


def _row(overview: Overview, data: StudyData) -> dict[str, object]:
    study, settings = data.study, data.record.settings
    best = best_point(data.points, study.floors, "speedup_evaluations")
    result = None if best is None else data.results[best]
    states = overview.trials
    return {
        "study": study.name,
        "model": str(data.record.model.get("transformer", data.record.model.get("pipeline", "unknown"))),
        "settings": "{height}x{width}, {num_frames} frames, {num_inference_steps} steps".format_map(
            {"height": "?", "width": "?", "num_frames": "?", "num_inference_steps": "?"} | settings
        ),
        "complete": states.get("complete", 0),
        "failed": states.get("fail", 0),
        "running": states.get("running", 0),
        "searched": min(1.0, len(data.results) / study.budget.trials),
        "above floors": int(feasible(data.points, study.floors).sum()),
        "best above floors": result.speedup_evaluations if result else None,
        "at PSNR": result.figures["psnr_db"] if result else None,
        "generating": overview.seconds / 60,
        "last activity": overview.last_activity or data.record.created,
        "hardware": str(overview.hardware.get("device_name") or overview.hardware.get("processor", "none yet")),
    }


def _front(data: StudyData, page: Page) -> pd.DataFrame:
    points = data.points
    whole = points[~points["estimated"] & points["stopped"].isna()]
    return front(whole, page.speed.key, page.quality.key)
