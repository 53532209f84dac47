"""The page: chooses a view and says plainly why there is nothing to show. Started by `scope-calibrate dashboard`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import plotly.graph_objects as go
import streamlit as st
from PIL import Image
from streamlit.delta_generator import DeltaGenerator

from calibrate.display.wording import plain
from calibrate.errors import CalibrateError
from calibrate.store import masked_url
from dashboard import cache
from dashboard.live import watch
from dashboard.page import INSIGHT, POLICY, STUDIES, TRADE_OFF, VIEWS, Page, note_meaning, sidebar, style
from dashboard.views import front, insight, studies, trial
from scope_runtime import ScopeError

_VIEWS: Mapping[str, Callable[[Page], None]] = {
    TRADE_OFF: front.show,
    POLICY: trial.show,
    INSIGHT: insight.show,
}


def _icon() -> Image.Image:
    """Four blocks in the colours of their modes; a named icon would be fetched from the network."""
    corners = np.array([[(213, 94, 0), (0, 114, 178)], [(0, 114, 178), (86, 180, 233)]], dtype=np.uint8)
    return Image.fromarray(corners.repeat(16, axis=0).repeat(16, axis=1))


def _fetch_plotly(below: DeltaGenerator) -> None:
    """Has the browser fetch the plotting library, the largest part of the page, while the server draws the first chart.

    An empty chart below the page does that; it is gone when the page is drawn again.
    """
    if "plotly" not in st.session_state:
        st.session_state["plotly"] = True
        unseen = {"visible": False}
        nothing = go.Figure(layout={"height": 10, "xaxis": unseen, "yaxis": unseen})
        below.plotly_chart(nothing, theme=None, key="plotly_fetched", config={"staticPlot": True})


def main() -> None:
    """Draws the page."""
    st.set_page_config(page_title="scope-calibrate", page_icon=_icon(), layout="wide")
    style()
    page, below = st.container(), st.container()
    _fetch_plotly(below)
    try:
        with page:
            _draw()
    except (CalibrateError, ScopeError) as error:
        st.error(plain(error), icon=":material/database_off:")
        watch(None)


def _draw() -> None:
    storage = cache.storage()
    heartbeat = cache.pulse(storage)
    found = cache.overviews(storage, storage.url.render_as_string(hide_password=False), heartbeat)
    if not found:
        st.info(
            f"{plain(masked_url(storage.url))} holds no studies yet; start one with `scope-calibrate run STUDY.yaml`."
        )
        watch(heartbeat)
        return
    view = st.segmented_control(
        "View",
        VIEWS,
        default=TRADE_OFF,
        required=True,
        key="view",
        bind="query-params",
        label_visibility="collapsed",
    )
    page = sidebar(storage, heartbeat, [overview.study.name for overview in found])
    note_meaning(page)
    if view == STUDIES:
        studies.show(page, found)
    else:
        _VIEWS[str(view)](page)
    watch(heartbeat)


main()
