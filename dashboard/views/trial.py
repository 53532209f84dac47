"""One policy from close by: its clips, what it did in every row, its figures, and the way to its profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from calibrate.display.mode_map import mode_map
from calibrate.display.trial import block_quality, frame_quality, prediction_errors, time_spent
from calibrate.display.weights import weight_map
from calibrate.display.wording import (
    file_name,
    kind_remark,
    learned_policy,
    modes_note,
    plain,
    plan_note,
    policy_sentence,
    prompts,
    reasons,
)
from calibrate.families import family_of
from calibrate.quality.metrics import METRICS, metric_version, psnr_meaning
from calibrate.results.result import LEARNED, Result
from calibrate.store import CANDIDATE, Generation, ProfileRecord, browse
from dashboard import cache, clips
from dashboard.page import Page, select_trial, tiles
from scope_runtime import Profile

# Shorter than the metrics' own names, so that a narrow window holds them all.
_COLUMNS = {
    "psnr_db": "PSNR",
    "psnr_worst_frame_db": "worst frame",
    "psnr_worst_block_db": "worst block",
    "temporal_psnr_db": "motion PSNR",
    "ssim": "SSIM",
    "motion_error_px": "flow error",
}

Measurement = tuple[Generation, dict[str, Any]]


def show(page: Page) -> None:
    """Draws the view."""
    result = page.result
    if result is None:
        st.info("Nothing is selected: no policy of this study has been measured yet.")
        return
    _header(page, result)
    measured = browse.measurements(
        page.storage, page.data.record.id, result.policy, result.metric_version, result.preparation
    )
    if not measured:
        st.info("The generations of this policy are no longer in the database.")
        _weights(page, result)
        return
    record = page.data.profile_of(result.trial)
    chosen = _choose_case(measured)
    left, right = st.columns([1, 1], gap="large")
    with left:
        _watch(page, chosen)
        _frames(page, measured)
    with right:
        _what_it_did(page, result, chosen)
        _times(page, measured)
    _weights(page, result)
    _table(measured)
    st.divider()
    _take(page, result, record)


def _header(page: Page, result: Result) -> None:
    points = page.data.points[~page.data.points["estimated"]].sort_values(page.speed.key)
    numbers = points["trial"].tolist()
    title, slower, faster = st.columns([6, 1, 1], vertical_alignment="bottom")
    place = "fastest above the floors" if result.trial == page.best else (result.stopped or "")
    remark = " · ".join(filter(None, (kind_remark(page.data, result), place)))
    title.markdown(f"## Trial {result.trial}" + (f"  :gray[· {plain(remark)}]" if remark else ""))
    at = numbers.index(result.trial)
    for column, step, name in ((slower, -1, "Slower"), (faster, 1, "Faster")):
        known = 0 <= at + step < len(numbers)
        target = numbers[at + step] if known else result.trial
        column.button(name, width="stretch", disabled=not known, on_click=select_trial, args=(int(target),))
    tiles(page, result)
    st.markdown(policy_sentence(result.policy))


def _choose_case(measured: Sequence[Measurement]) -> Measurement:
    """The worst prompt first: what a policy does to it decides."""
    worst = min(range(len(measured)), key=lambda i: (measured[i][0].metrics or {}).get("psnr_db", 0.0))
    number = st.selectbox(
        "Prompt", range(len(measured)), index=worst, format_func=lambda i: _label(measured[i][0]), key="prompt"
    )
    return measured[int(number)] if number < len(measured) else measured[worst]


def _label(row: Generation) -> str:
    kind = "search" if row.kind == CANDIDATE else "held out"
    return f"{row.prompt} (seed {row.seed}, {kind}): {(row.metrics or {}).get('psnr_db', float('nan')):.1f} dB"


def _watch(page: Page, chosen: Measurement) -> None:
    st.markdown("#### Stock, SCOPE and their difference")
    study, allowed = page.data.study, cache.clip_folders(page.storage)
    if not clips.served(study.cache_folder, allowed):
        st.info(
            f"This study's record says that its cache is {plain(study.cache_folder)}. Clips are shown from there once "
            "the dashboard is started with --cache and this folder."
        )
        return
    path = clips.clip_of(chosen[0], study, allowed)
    if path is None:
        st.info("No clip of this generation is kept here: the newest ones are, in the study's cache folder.")
        return
    st.video(path.read_bytes(), loop=True, autoplay=True, muted=True)
    _scrub(str(path), chosen[1].get("frame_psnr_db", []))


@st.fragment
def _scrub(path: str, frame_psnr_db: Sequence[float]) -> None:
    """A frame at a time; a fragment, so that scrubbing redraws nothing else."""
    last = clips.frame_count(Path(path)) - 1
    if last < 1:
        return
    worst = int(np.argmin(frame_psnr_db)) if frame_psnr_db else 0
    number = st.slider("Frame", 0, last, min(worst, last), key=f"frame-{path}", help="Starts at the worst frame.")
    st.image(clips.frame(Path(path), number), width="stretch")
    if number < len(frame_psnr_db):
        st.caption(
            f"Frame {number}: {frame_psnr_db[number]:.1f} dB against stock. Difference: 8 times, around mid-grey."
        )


def _what_it_did(page: Page, result: Result, chosen: Measurement) -> None:
    st.markdown("#### What each block did")
    row, detail = chosen
    if not detail.get("modes"):
        st.info("Modes were not recorded for this generation: it was measured by an earlier version.")
        return
    st.plotly_chart(mode_map(detail["modes"], page.colours), theme=None, key="modes")
    st.caption(modes_note(row, detail))
    if detail.get("prediction_errors"):
        st.markdown("#### How far off predictions were")
        st.plotly_chart(prediction_errors(detail["prediction_errors"], page.colours), theme=None, key="errors")
        st.caption(
            "At every recompute: what the gap before would still have handed over, against what the model gave."
            if result.kind == LEARNED
            else "At every recompute: what predicting would have given against what the model gave (lines), and the "
            "error that was to be expected (circles), from the first term that the extrapolation leaves out."
        )


def _weights(page: Page, result: Result) -> None:
    """The plan and the weights of a policy that has them; they are the same for every prompt."""
    if result.kind != LEARNED:
        return
    policy = learned_policy(result.policy)
    if isinstance(policy, str) or policy.plan is None or policy.gap_weights is None:
        return  # the header has said why
    st.markdown("#### The plan")
    st.plotly_chart(mode_map(policy.plan, page.colours), theme=None, key="plan")
    st.caption(plan_note(policy))
    st.markdown("#### The learned weights")
    weights = policy.gap_weights
    if not weights.weights:
        st.info("None were fitted: every gap hands over its newest output as it is.")
        return
    first = policy.first_window
    for key, said, rules in (
        ("first", " in a video's first window", first),
        ("", " in all others" if first else "", policy),
    ):
        if rules is None or rules.gap_weights is None:
            continue
        st.markdown(f"Weight of the newest output{said} (1: as it is)")
        st.plotly_chart(weight_map(rules, page.colours, older=False), theme=None, key=f"{key}newest")
        st.markdown(f"Weights of the older outputs{said}, added up (0: left aside)")
        st.plotly_chart(weight_map(rules, page.colours, older=True), theme=None, key=f"{key}older")
    st.caption(
        f"From a recompute up to the next one, a block hands over a sum of its newest {weights.depth} raw outputs, on "
        "each guidance branch with weights of its own. A number or a dot stands at each recompute, where a bar of one "
        "shade begins; pointing at it shows all its weights. They were fitted on "
        f"{prompts(len(page.data.study.fit_cases), 'fit ')} so that at the end of every gap the latents come close to "
        f"those of the full run, and hold for this plan, {weights.num_inference_steps} steps, guidance "
        f"{weights.guidance_scale:g} and this scheduler only."
    )


def _frames(page: Page, measured: Sequence[Measurement]) -> None:
    by_case = {
        f"{row.prompt[:38]} ({row.seed})": detail["frame_psnr_db"]
        for row, detail in measured
        if detail.get("frame_psnr_db")
    }
    if by_case:
        st.markdown("#### Quality over time")
        st.plotly_chart(frame_quality(by_case, page.floors.psnr_worst_frame_db, page.colours), theme=None, key="frames")
    by_block = {
        f"{row.prompt[:38]} ({row.seed})": dict(zip(detail["block_ends"], detail["block_psnr_db"], strict=True))
        for row, detail in measured
        if detail.get("block_psnr_db")
    }
    if by_block:
        st.markdown("#### Quality block by block")
        floor = page.floors.psnr_worst_block_db
        st.plotly_chart(block_quality(by_block, floor, page.colours), theme=None, key="blocks")


def _times(page: Page, measured: Sequence[Measurement]) -> None:
    searched = [row for row, _ in measured if row.kind == CANDIDATE]
    stock = page.data.stock
    if not searched or stock is None:
        return
    st.markdown("#### Where the time went")

    def mean(values: Sequence[float | None]) -> float:
        return float(np.mean([value or 0.0 for value in values]))

    decode = mean([row.seconds_decode for row in searched])
    denoise = mean([row.seconds_denoise for row in searched])
    encode = max(0.0, mean([row.seconds_end_to_end for row in searched]) - denoise - decode)
    ways = {"stock": stock.seconds_denoise}
    if exact := page.data.means.get("exact"):
        ways["exact"] = exact.seconds_denoise
    ways["SCOPE"] = denoise
    seconds = {name: {"denoising": value, "decoding": decode, "encoding": encode} for name, value in ways.items()}
    st.plotly_chart(time_spent(seconds, page.colours), theme=None, key="times")
    st.caption("Exact mode leaves out only what cannot change the video. Encoding and decoding stay as they are.")


def _table(measured: Sequence[Measurement]) -> None:
    st.markdown("#### Prompt by prompt")
    rows = [
        {
            "prompt": row.prompt,
            "seed": row.seed,
            "set": "search" if row.kind == CANDIDATE else "held out",
            "speed-up": (row.stock_evaluations or 0) / row.evaluations if row.evaluations else None,
            "denoising s": row.seconds_denoise,
            "stock s": row.stock_seconds_denoise,
            **{_COLUMNS.get(name, name): (row.metrics or {}).get(name) for name in METRICS},
        }
        for row, _ in measured
    ]
    decibel = st.column_config.NumberColumn(format="%.1f dB")
    whole = st.column_config.NumberColumn(format="%.1f dB", help=psnr_meaning(measured[0][0].metric_version))
    number = st.column_config.NumberColumn
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        column_config={
            "prompt": st.column_config.TextColumn(width=130),
            "seed": number(width=50),
            "speed-up": number(format="%.2fx"),
            "denoising s": number(format="%.2f"),
            "stock s": number(format="%.2f", help="Denoising by the stock pipeline"),
            "PSNR": whole,
            "worst frame": decibel,
            "worst block": decibel,
            "motion PSNR": number(format="%.1f dB", help="PSNR of the differences between neighbouring frames"),
            "SSIM": number(format="%.4f"),
            "flicker": number(format="%.3f", help="Error of the change of mean luma between frames, in steps of 1/255"),
            "flow error": number(format="%.3f px", help="Mean end-point error of the optical flow"),
        },
    )


def _take(page: Page, result: Result, record: ProfileRecord | None) -> None:
    profile = Profile.from_dict(record.profile) if record else None
    why, take = st.columns(2, gap="large")
    with why:
        st.markdown("#### Why this point")
        for line in reasons(page.data, result, page.floors, page.speed.key, page.quality.key):
            st.markdown(f"- {line}")
        if profile is not None:
            _evidence(profile.evidence)
    with take:
        st.markdown("#### Take the profile")
        if record is None or profile is None:
            _how_to_export(page, result)
            return
        name = file_name(record.path, ".json")
        st.download_button(
            f"Download {plain(name)}",
            profile.to_json(),
            file_name=name,
            mime="application/json",
            type="primary",
            icon=":material/download:",
            on_click="ignore",
        )
        st.code(family_of(page.data.study.model).usage(profile.settings, name), language="python")


def _evidence(evidence: Mapping[str, Any]) -> None:
    st.markdown(
        f"- On {prompts(evidence['n'], 'held-out ')}, paired in one run: {evidence['speedup_evaluations']:.2f}x fewer "
        f"block evaluations, {evidence['speedup_denoise']:.2f}x faster denoising, "
        f"{evidence['speedup_end_to_end']:.2f}x end to end, {evidence['psnr_db']:.1f} dB, "
        f"worst prompt {evidence['psnr_worst_prompt_db']:.1f} dB ({psnr_meaning(metric_version(evidence))})."
    )
    if guarantee := evidence.get("guarantee"):
        st.markdown(
            f"- Promised: {plain(guarantee['statement'])} Of {prompts(guarantee['n'], 'guarantee ')}, "
            f"{guarantee['misses']:,} miss a floor. {plain(guarantee['assumption'])}"
        )
    for name, by in evidence.get("missed_floors", {}).items():
        st.markdown(
            f"- :orange[The held-out prompts miss the floor {plain(name)} by {by:.3g}], without the margin that the "
            "search asks for. The profile says so."
        )


def _how_to_export(page: Page, result: Result) -> None:
    study = page.data.study
    st.markdown(
        f"A profile carries evidence from {prompts(len(study.held_out_cases), 'held-out ')}, and this policy has not "
        "been measured there yet. This command measures them and writes the profile; then it can be downloaded here:"
    )
    st.code(f"scope-calibrate export {study.name}.yaml --trial {result.trial}", language="bash")
