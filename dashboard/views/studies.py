"""All studies of the database, and the fronts of several in one plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import streamlit as st

from calibrate.display.data import StudyData, best_point, feasible, front
from calibrate.display.front import compared_fronts
from calibrate.display.measures import quality_measures
from calibrate.display.wording import plain
from calibrate.quality.metrics import METRIC_VERSION
from calibrate.store.browse import Overview
from dashboard import cache
from dashboard.page import Page


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
            "best": st.column_config.NumberColumn(
                "best above floors",
                format="%.2fx",
                help="Block evaluations on the search prompts, floors held with the safety margin",
            ),
            "budget spent": st.column_config.ProgressColumn(
                format="percent",
                min_value=0,
                max_value=1,
                width=110,
                help="Of its trials or of its full generations, whichever is further",
            ),
            "at PSNR": st.column_config.NumberColumn(format="%.1f dB"),
            "complete": st.column_config.NumberColumn(width=76, help="Trials"),
            "failed": st.column_config.NumberColumn(width=60, help="Trials"),
            "running": st.column_config.NumberColumn(width=68, help="Trials"),
            "last activity": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
            "time spent": st.column_config.NumberColumn(format="%.1f min", help="Wall clock of all generations"),
            "measured before": st.column_config.NumberColumn(
                help="Policies whose figures an earlier program measured, by another definition of PSNR; set apart"
            ),
        },
    )
    st.markdown("### Compare fronts")
    names = list(data)
    measured = [name for name in names if data[name].results or data[name].earlier]
    chosen = st.multiselect("Studies to compare", names, default=measured[:3], key="compare", bind="query-params")
    version, drawn = _alike({name: data[name] for name in chosen})
    if left_out := [name for name in chosen if name not in drawn and data[name].earlier is not None]:
        st.caption(
            "Not drawn, because their figures were measured by an earlier program and mean something else: "
            f"{', '.join(map(plain, left_out))}."
        )
    fronts = {name: _front(found, page) for name, found in drawn.items()}
    fronts = {name: points for name, points in fronts.items() if len(points)}
    if not fronts:
        st.info("None of these studies has a measured policy yet.")
        return
    measures = quality_measures(version)
    quality = measures.get(page.quality.key, measures["psnr_db"])  # another study may not have the score
    st.plotly_chart(compared_fronts(fronts, page.speed, quality, page.colours), theme=None, key="compared")
    st.caption(
        "Only the best measured trade-offs of each study. Compare studies only where model and settings are alike."
    )


def _row(overview: Overview, data: StudyData) -> dict[str, object]:
    study, settings = data.study, data.record.settings
    best = best_point(data.points, study.floors, "speedup_evaluations")
    result = None if best is None else data.results[best]
    states = overview.trials
    transformer = str(data.record.model.get("transformer", data.record.model.get("pipeline", "unknown")))
    # What decides comes first: a narrow window shows the first columns.
    return {
        "study": study.name,
        "best": result.speedup_evaluations if result else None,
        "at PSNR": result.figures["psnr_db"] if result else None,
        "budget spent": data.budget_spent,
        "complete": states.get("complete", 0),
        "failed": states.get("fail", 0),
        "running": states.get("running", 0),
        "last activity": overview.last_activity or data.record.created,
        "model": transformer.removesuffix("Transformer3DModel"),
        "settings": "{height}x{width}, {num_frames} frames, {num_inference_steps} steps".format_map(
            {"height": "?", "width": "?", "num_frames": "?", "num_inference_steps": "?"} | settings
        ),
        "hardware": str(overview.hardware.get("device_name") or overview.hardware.get("processor", "none yet")),
        "time spent": overview.seconds / 60,
        "measured before": len(data.earlier.results) if data.earlier else 0,
        "above floors": int(feasible(data.points, study.floors).sum()),
    }


def _alike(studies: Mapping[str, StudyData]) -> tuple[int, dict[str, StudyData]]:
    """The newest metric version by which any of the studies was measured, and what was measured by it."""
    known = {name: data if data.results else data.earlier for name, data in studies.items()}
    version = max((data.metric_version for data in known.values() if data is not None), default=METRIC_VERSION)
    return version, {name: d for name, d in known.items() if d is not None and d.metric_version == version}


def _front(data: StudyData, page: Page) -> pd.DataFrame:
    points = data.points
    whole = points[~points["estimated"] & points["stopped"].isna()]
    return front(whole, page.speed.key, page.quality.key)
