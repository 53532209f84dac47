"""What all views share: the open study, what is selected (it stands in the address), and the colours of the page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import streamlit as st

from calibrate.display.data import StudyData, best_point, feasible
from calibrate.display.measures import SPEED, Measure, quality_measures, score_measures
from calibrate.display.theme import Palette, palette
from calibrate.display.wording import plain
from calibrate.quality.metrics import METRIC_VERSION
from calibrate.results.result import Result
from calibrate.spec.floors import Floors
from calibrate.spec.score_floor import ScoreFloor
from calibrate.store import Storage
from dashboard import cache

STUDIES, TRADE_OFF, POLICY, INSIGHT = VIEWS = ("Studies", "Trade-off", "Policy", "Insight")

_STYLE = """
<style>
.block-container {padding: 3.2rem 2.2rem 2rem;}
[data-testid="stMetricValue"] {font-size: 1.7rem;}
[data-testid="stMetric"] {padding: 0.5rem 0.8rem;}
</style>
"""


@dataclass(frozen=True)
class Page:
    """One state of the page.

    Attributes:
        storage: The open database.
        heartbeat: See `calibrate.store.browse.pulse`.
        data: The selected study.
        speed: The selected speed-up.
        quality: The selected quality.
        floors: The study's, with what the sliders say instead.
        colours: For a light or a dark page.
    """

    storage: Storage
    heartbeat: tuple[Any, ...]
    data: StudyData
    speed: Measure
    quality: Measure
    floors: Floors
    colours: Palette

    @cached_property
    def holds(self) -> pd.Series:
        """Which points hold the floors."""
        return feasible(self.data.points, self.floors)

    @cached_property
    def best(self) -> int | None:
        """The fastest trial above the floors."""
        return best_point(self.data.points, self.floors, self.speed.key)

    @property
    def trial(self) -> int | None:
        """The selected trial: the address's, or else the best above the floors, or else the closest to stock."""
        asked = st.query_params.get("trial", "")
        if asked.isdecimal() and int(asked) in self.data.results:
            return int(asked)
        measured = self.data.points[~self.data.points["estimated"]]
        if self.best is not None or measured.empty:
            return self.best
        return int(measured.loc[measured["psnr_db"].idxmax(), "trial"])

    @property
    def result(self) -> Result | None:
        """The selected trial's result."""
        return None if self.trial is None else self.data.results[self.trial]

    @property
    def url(self) -> str:
        """Names the database in caches; never shown."""
        return self.storage.url.render_as_string(hide_password=False)


def select_trial(number: int, view: str | None = None) -> None:
    """Selects a trial, and with it a view; for callbacks, which run before the page is built."""
    st.query_params["trial"] = str(number)
    if view:
        st.session_state["view"] = view


def style() -> None:
    """Less empty space around the charts than Streamlit leaves."""
    st.html(_STYLE)


def colours() -> Palette:
    """The colours that fit the browser's theme."""
    return palette(dark=st.context.theme.type == "dark")


def tiles(page: Page, result: Result) -> None:
    """The figures of a policy on the search prompts, in one row."""
    figures = result.figures
    floors = page.floors
    row = st.columns(5, gap="small")
    worst = "psnr_worst_prompt_db"
    shown = (
        (
            "Evaluations",
            f"{result.speedup_evaluations:.2f}x",
            "fewer",
            "Block evaluations: stock's over this policy's; the same on any machine",
        ),
        (
            "Denoising",
            f"{result.speedup_denoise:.2f}x",
            "faster",
            "Wall clock beside stock, one prompt" if result.paired else "Wall clock, not paired: a hint",
        ),
        (
            "PSNR, mean",
            f"{figures['psnr_db']:.1f} dB",
            _over(floors, figures, "psnr_db"),
            f"Mean over the search prompts, against the stock clips: {page.data.meaning}",
        ),
        ("PSNR, worst", f"{figures[worst]:.1f} dB", _over(floors, figures, worst), "The prompt that comes out worst"),
        ("SSIM", f"{figures['ssim']:.4f}" if "ssim" in figures else "not kept", "1 is identical", "Mean of all frames"),
    )
    for column, (label, value, remark, meaning) in zip(row, shown, strict=True):
        judged = remark is not None and "floor" in remark
        column.metric(
            label,
            value,
            remark,
            delta_color="normal" if judged else "off",
            delta_arrow="auto" if judged else "off",
            border=True,
            help=meaning,
            height="stretch",
        )


def sidebar(opened: Storage, heartbeat: tuple[Any, ...], names: list[str]) -> Page:
    """Draws the choices that hold on every view and reads the study that they name."""
    with st.sidebar:
        st.markdown("### scope-calibrate")
        _note_missing(names)
        name = st.selectbox("Study", names, key="study", bind="query-params", on_change=_forget_trial)
        data = _one_version(cache.study(opened, opened.url.render_as_string(hide_password=False), str(name), heartbeat))
        st.markdown("##### Axes")
        speed = st.segmented_control(
            "Speed-up in",
            list(SPEED),
            format_func=lambda key: SPEED[key].short,
            default=data.speed,
            required=True,
            key="speed",
            bind="query-params",
            help="Block evaluations do not depend on the machine. Wall clock is denoising time on the study's machine: "
            "beside stock where the study may set the pipeline up in other ways, else not paired, so only a hint; an "
            "export measures it paired.",
        )
        measures = {**quality_measures(data.metric_version), **score_measures(data.study.floors)}
        quality = st.selectbox(
            "Quality", list(measures), format_func=lambda key: measures[key].short, key="quality", bind="query-params"
        )
        floors = _floor_sliders(data)
    return Page(opened, heartbeat, data, SPEED[str(speed)], measures[str(quality)], floors, colours())


def _one_version(data: StudyData) -> StudyData:
    """What is measured now, or what an earlier version measured where that is all there is, or is asked for."""
    if data.earlier is None:
        return data
    if data.results and not st.toggle(
        f"Measured before ({len(data.earlier.results):,})",
        key="earlier",
        bind="query-params",
        on_change=_forget_trial,
        help=f"Policies whose PSNR is the {data.earlier.meaning}. They are never set beside new ones.",
    ):
        return data
    return data.earlier


def note_meaning(page: Page) -> None:
    """Says so where the figures do not mean what they would mean if they were measured today."""
    if page.data.metric_version != METRIC_VERSION:
        st.warning(
            f"Measured by an earlier program: PSNR is the {page.data.meaning}. These figures cannot be compared with "
            "new ones; `scope-calibrate run` measures anew."
        )


def _floor_sliders(data: StudyData) -> Floors:
    floors = data.study.floors
    st.markdown("##### Quality floors")
    mean = _floor("Mean PSNR (dB)", "floor", floors.psnr_db)
    worst = _floor("Worst prompt's PSNR (dB)", "worst", floors.psnr_worst_prompt_db)
    if floors.safety_margin_db:
        st.caption(f"While searching, a margin of {floors.safety_margin_db:g} dB is asked for on top.")
    scores = {name: _score_sliders(name, floor, data) for name, floor in floors.scores.items()}
    return floors.model_copy(update={"psnr_db": mean, "psnr_worst_prompt_db": worst, "scores": scores})


def _score_sliders(name: str, floor: ScoreFloor, data: StudyData) -> ScoreFloor:
    """A slider for each bound of a floor on a score, as far as measured policies reach."""
    chosen = {}
    for demand in floor.demands(name):
        bound = demand.name.rpartition(".")[2]
        asked = float(getattr(floor, bound))
        # What a bound that each policy just held would say.
        values = data.points[demand.figure].dropna() * (-1.0 if bound == "below_stock" else 1.0)
        relative = bound.endswith("_stock")
        low = min(asked, *([0.0] if relative else values))
        high = max(asked, *values) if len(values) else asked
        high = high if high > low else low + 1.0
        label = f"{name}: {bound.replace('_', ' ')}{', every prompt' if demand.per_prompt else ', mean'}"
        chosen[bound] = st.slider(
            plain(label), low, high, asked, (high - low) / 200, format="%.3f", key=f"score_{name}_{bound}",
            bind="query-params",
        )  # fmt: skip
    return floor.model_copy(update=chosen)


def _floor(label: str, key: str, value: float | None) -> float | None:
    chosen = st.slider(label, 0.0, 60.0, float(value or 0.0), 0.5, key=key, bind="query-params")
    return chosen or None


def _over(floors: Floors, figures: dict[str, float], name: str) -> str | None:
    """How far above its floor, with the margin that is asked for while searching, a figure is."""
    short = floors.shortfalls(figures, margin=True).get(name)
    if short is None:
        return None
    return f"{-short:+.1f}, floor {figures[name] + short:.3g}"  # short enough for a tile


def _note_missing(names: list[str]) -> None:
    """Remembers, until another study is chosen, that the one asked for is not there, and says so."""
    asked = st.session_state.get("study") or st.query_params.get("study")
    if asked and asked not in names:
        st.session_state["missing_study"] = asked
        st.session_state.pop("study", None)
        _drop_choices()
    if missing := st.session_state.get("missing_study"):
        st.warning(f"The study '{plain(missing)}' is not in this database (any more). Here is '{plain(names[0])}'.")


def _forget_trial() -> None:
    """Another study has other trials and floors of its own."""
    st.session_state.pop("missing_study", None)
    _drop_choices()


def _drop_choices() -> None:
    known = {*map(str, st.query_params), *map(str, st.session_state)}
    _drop("trial", "floor", "worst", *(name for name in known if name.startswith("score_")))


def _drop(*names: str) -> None:
    for name in names:
        st.query_params.pop(name, None)
        st.session_state.pop(name, None)
