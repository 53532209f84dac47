"""What the search says about the space: what matters, how smooth it is, whether going on would pay."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from calibrate.display.measures import Measure
from calibrate.display.wording import KINDS, plain
from dashboard import cache, insight
from dashboard import insight_plots as plots
from dashboard.page import Page

_CURVE_TRIALS = 1500
# A median that moves by less than this share of all values' spread says that the parameter hardly matters.
_INERT_SHARE = 0.05
_CHANCE = 0.05


def show(page: Page) -> None:
    """Draws the view."""
    st.markdown("## Insight")
    measured = page.data.points[~page.data.points["estimated"]].dropna(subset=[page.speed.key, page.quality.key])
    if len(measured) < 2:
        st.info("With fewer than two measured policies there is nothing to compare yet.")
        return
    of_kind = _of_kind(page, measured)
    known = cache.parameters(page.storage, page.url, page.data.record.name, page.heartbeat)
    parameters = {trial: known[trial] for trial in of_kind["trial"] if trial in known}
    left, right = st.columns(2, gap="large")
    with left:
        _importance(page, of_kind, parameters)
        _progress(page, measured)
    with right:
        _curves(page, of_kind, parameters)
        _replay(page)
    _parallel(page, of_kind, parameters)


def _of_kind(page: Page, measured: pd.DataFrame) -> pd.DataFrame:
    """The policies whose parameters are shown: those of two kinds have nothing in common."""
    kinds = page.data.kinds
    if len(kinds) < 2:
        return measured
    kind = st.segmented_control(
        "Parameters of", kinds, format_func=KINDS.__getitem__, default=kinds[0], required=True, key="kind",
        bind="query-params",
    )  # fmt: skip
    shown = measured[measured["kind"] == kind]
    st.caption(
        f"This study searches thresholds and plans with learned weights, by different parameters. What matters, how "
        f"each number acts and all parameters at once are shown of the {len(shown):,} policies with "
        f"**{KINDS[kind]}**; whether more budget would pay, of both kinds together."
    )
    return shown


def _importance(page: Page, measured: pd.DataFrame, parameters: insight.Parameters) -> None:
    st.markdown("#### What matters")
    found = {
        measure.short: insight.importance(parameters, dict(zip(measured["trial"], measured[measure.key], strict=True)))
        for measure in (page.quality, page.speed)
    }
    if not any(found.values()):
        st.info("Too few policies to tell which parameter matters.")
        return
    st.plotly_chart(plots.importance_bars(found, page.colours), theme=None, key="importance")
    if len(measured) > insight.IMPORTANCE_TRIALS:
        st.caption(f"From an even selection of about {insight.IMPORTANCE_TRIALS:,} policies.")


def _curves(page: Page, measured: pd.DataFrame, parameters: insight.Parameters) -> None:
    st.markdown("#### How each number acts")
    numeric = _numeric(parameters)
    if not numeric:
        st.info("The search's parameters are not recorded yet.")
        return
    name = st.selectbox("Parameter", numeric, key="parameter", bind="query-params")
    stride = max(1, len(measured) // _CURVE_TRIALS)
    pairs = [
        (float(parameters[trial][name][0]), figure)
        for trial, figure in zip(
            measured["trial"].iloc[::stride], measured[page.quality.key].iloc[::stride], strict=True
        )
        if name in parameters.get(trial, {})
    ]
    if len(pairs) < 2:
        st.info(f"Hardly any measured policy uses {plain(name)}.")
        return
    x, y = zip(*pairs, strict=True)
    shape = insight.curve(x, y)
    st.plotly_chart(plots.parameter_curve(x, y, shape, str(name), page.quality, page.colours), theme=None, key="curve")
    st.caption(_verdict(shape, max(y) - min(y), page.quality))


def _numeric(parameters: insight.Parameters) -> list[str]:
    """The names of number-valued parameters, those that were tried at the most different values first."""
    tried: dict[str, set[float]] = {}
    for found in parameters.values():
        for name, (value, _) in found.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                tried.setdefault(name, set()).add(float(value))
    return sorted(tried, key=lambda name: -len(tried[name]))


def _verdict(shape: insight.Curve, spread: float, measure: Measure) -> str:
    if spread and shape.range < _INERT_SHARE * spread:
        return f"Hardly any effect: the median moves by {measure.text(shape.range)} over the whole range."
    if shape.chance > _CHANCE:
        return (
            f"No effect to be seen: chance alone would move the median as much ({measure.text(shape.range)}) with a "
            f"probability of {shape.chance:.2f}."
        )
    return f"The median moves by {measure.text(shape.range)} over the range tried; other parameters vary along with it."


def _progress(page: Page, measured: pd.DataFrame) -> None:
    st.markdown("#### Would more budget pay?")
    floor = (
        float(measured[page.quality.key].min()) if page.quality.key != "psnr_db" else float(page.floors.psnr_db or 0.0)
    )
    counts, areas = insight.hypervolume(measured, page.speed.key, page.quality.key, floor)
    figure = plots.hypervolume_curve(counts, areas, page.quality, floor, page.colours)
    st.plotly_chart(figure, theme=None, key="hypervolume")
    st.caption("Still rising at the end: go on searching. Flat for long: the search has found what there is.")


def _replay(page: Page) -> None:
    st.markdown("#### Replay against real")
    both = page.data.replayed
    if len(both) < 2:
        st.info("This study holds no replay estimates to set beside real generations.")
        return
    estimated, real = both["estimate_psnr_db"].tolist(), both["psnr_db"].tolist()
    stride = -(-len(both) // _CURVE_TRIALS)
    figure = plots.replay_against_real(estimated[::stride], real[::stride], page.colours)
    st.plotly_chart(figure, theme=None, key="replay")
    st.caption(
        f"Rank correlation {insight.rank_correlation(estimated, real):.2f} over {len(both)} policies. Each estimate "
        "was made before its policy was run, from the runs before it."
        + (" Plans with learned weights have none." if len(page.data.kinds) > 1 else "")
    )


def _parallel(page: Page, measured: pd.DataFrame, parameters: insight.Parameters) -> None:
    st.markdown("#### All parameters at once")
    if len(measured) < 2:
        st.info("With fewer than two measured policies there is nothing to compare yet.")
        return
    table = insight.varied(parameters, measured["trial"].tolist()).set_index(measured.index)
    shown = pd.concat([table, measured[[page.speed.key, page.quality.key]]], axis="columns")
    st.plotly_chart(plots.parallel_coordinates(shown, page.quality, page.colours), theme=None, key="parallel")
    st.caption("One line per policy. Drag along an axis to keep only what passes there.")
