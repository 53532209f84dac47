"""Figures in sentences: what is gained, what a policy does, why a point is worth taking or is not.

Sentences are Markdown: `**` marks what counts. What stands in a database or an address may come from anyone: `plain`
makes it text in Markdown, Streamlit's included, and `chart_text` in Plotly's figures. Numbers that are formatted as
numbers need neither.
"""

from __future__ import annotations

import html
import re
import string
from collections.abc import Mapping
from typing import Any

import pandas as pd

from calibrate.display.data import StudyData, Unseen, best_point, front
from calibrate.display.measures import Measure
from calibrate.progress import printable
from calibrate.results.guarantee import cases_needed
from calibrate.results.promise_table import Cell, PromiseTable, told_trial
from calibrate.results.result import LEARNED, THRESHOLDS, Kind, Result, told_preparation
from calibrate.spec.floors import Floors
from calibrate.store import Generation
from scope_runtime import Policy, ProfileError
from scope_runtime.policy import CLEAN, IDLE, LAST, LETTERS, Mode

KINDS: Mapping[Kind, str] = {THRESHOLDS: "thresholds", LEARNED: "learned weights"}
"""What policies of each kind are called."""

_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")
# What is made into icons, emoji and links after backslashes have been taken away: an invisible character parts it.
_LATE = re.compile(r"(?<=:)(?=[\w+-])|(?<=http:)(?=//)|(?<=https:)(?=//)|(?<=www)(?=\.)|(?=@)", re.IGNORECASE)
_WORD_JOINER = "\u2060"


def plain(text: object) -> str:
    """What Markdown, Streamlit's too (of elements, labels and help alike), shows as just this text, on one line.

    Without it, text would become links, icons, formulas, colours, or images that the browser fetches.
    """
    return _PUNCTUATION.sub(r"\\\1", _LATE.sub(_WORD_JOINER, _one_line(text)))


def chart_text(text: object) -> str:
    """What a Plotly figure shows as just this text, in hover templates too: neither tags nor placeholders."""
    return html.escape(_one_line(text)).replace("%{", "%&#123;")


def file_name(path: str, suffix: str) -> str:
    """A harmless name for a download, from a path that is only looked at."""
    stem = path.replace("\\", "/").rpartition("/")[2].removesuffix(suffix)
    return (re.sub(r"[^A-Za-z0-9._-]+", "_", stem).lstrip(".-") or "profile") + suffix


def headline(
    best: Result | None, feasible: int, measured: int, with_margin: str = "", unseen: Unseen | None = None
) -> str:
    """What this model gains, in a sentence or two; of search prompts only where nothing else was measured.

    Args:
        best: The fastest policy above the floors.
        feasible: How many are above them.
        measured: How many were measured.
        with_margin: See `Floors.with_margin`.
        unseen: What a policy came to on prompts that no choice has seen, if any was measured there.
    """
    if not measured:
        return "No policy has been measured yet."
    none = f"None of the {measured:,} measured policies holds the quality floors{with_margin}"
    if unseen is None and best is None:
        return f"{none} yet: lower one to see what is near."
    place = f"the fastest of {feasible:,} policies above the floors{with_margin}, out of {measured:,} measured."
    if unseen is None:
        assert best is not None
        figures = best.figures
        gain = _gain(best.speedup_evaluations, figures["psnr_db"], figures["psnr_worst_prompt_db"])
        return f"On the search prompts, this model can make its videos with {gain}: {place}"
    told = f"{unseen_clause(unseen)}: trial {unseen.trial}"
    if best is None:
        return f"{told}. {none} on the search prompts."
    if best.trial == unseen.trial:
        return f"{told}. On the search prompts it is {place}"
    return f"{told}. On the search prompts alone trial {best.trial} is {place}"


def unseen_clause(unseen: Unseen) -> str:
    """What a policy gains on prompts that no choice has seen, without a full stop."""
    gain = _gain(unseen.speedup, unseen.psnr_db, unseen.worst_db)
    seen = f"On {prompts(unseen.prompts, f'{unseen.kind} ')}, which no choice has seen"
    return f"{seen}, this model makes its videos with {gain}"


def _gain(speedup: float, psnr_db: float, worst_db: float) -> str:
    return (
        f"**{speedup:.2f}x fewer block evaluations** at **{psnr_db:.1f} dB** against the stock video (worst prompt "
        f"{worst_db:.1f} dB)"
    )


def front_note(data: StudyData, quality: Measure) -> str:
    """How to read the chart of a study's front."""
    note = (
        "Each point is one policy, measured by real generations: **right is faster, up is closer to the stock video**. "
        "Of many points, those that would cover each other are drawn once."
    )
    if len(data.kinds) > 1:
        note += " Circles and crosses are thresholds, triangles are plans with learned weights."
    if quality.key == "psnr_db":
        note += " Bars reach down to the worst prompt."
    return note


def modes_note(row: Generation, detail: Mapping[str, Any]) -> str:
    """How to read the map of what each block did, and what it adds up to.

    Args:
        row: A generation under a policy.
        detail: What was kept of it, with its ``modes``.
    """
    letters = "".join(detail["modes"]).replace(IDLE, "")
    reused = sum(letters.count(LETTERS[mode]) for mode in (Mode.PREDICT, Mode.CACHE))
    return (
        f"Grey is what stock computes and SCOPE leaves out. Of {len(letters)} block updates {reused} were predicted or "
        f"reused: {row.evaluations:,} of stock's {row.stock_evaluations:,} block evaluations remain (guidance branches "
        f"counted apart). Longest run without "
        f"recompute: {detail.get('max_skip_seen', 0):,} rows; fallbacks to recompute: {detail.get('fallbacks', 0):,}."
    )


def plan_note(policy: Policy) -> str:
    """How to read the map of a frozen plan with learned weights."""
    computed, updates = recomputed(policy)
    return (
        "R: the block is computed. P: it hands over the weighted sum that its gap began with, at no cost. "
        f"{computed:,} of {updates:,} block updates are computed. {captures_sentence(policy)}"
    )


def promise_changed(table: PromiseTable) -> str:
    """What is to be said of a wish that was changed, behind "The study asks"."""
    return "" if table.declared else " (changed after policies were tested, and corrected for that)"


def promise_passed(table: PromiseTable) -> str:
    """The fastest policy that passed for the wish."""
    best = table.best
    return "No policy has passed." if best is None else sentence(f"{told_trial(best)} passed: {best.speed:.2f}x")


def promise_columns(table: PromiseTable) -> dict[str, list[str]]:
    """What else can be promised: a column of floors, and one for each share."""
    floors = sorted({cell.floor_db for cell in table.cells})
    columns = {"every prompt's PSNR": [f"{floor:g} dB" for floor in floors]}
    return columns | {
        f"{share:g} of prompts": [
            "the study asks for it" if cell is None else promised_cell(cell, len(table.cases))
            for cell in (table.cell(floor, share) for floor in floors)
        ]
        for share in sorted({cell.promise.share for cell in table.cells})
    }


def promise_note(table: PromiseTable) -> str:
    """How to read `promise_columns`."""
    return (
        f"Measured on {prompts(len(table.cases), 'guarantee ')}: the fastest policy"
        f"{' (denoising)' if table.timed else ''} that passes an exact test with confidence "
        f"{table.wish.confidence:.4g}. With a star, the fastest that does with "
        f"{table.corrected_confidence:.4g}, which is corrected for picking one of {table.corrected_for} promises after "
        "looking; `scope-calibrate export --promise FLOOR,SHARE` takes that one."
    )


def sentence(part: str) -> str:
    """A part of a sentence as one of its own."""
    return f"{part[0].upper()}{part[1:]}."


def promised_cell(cell: Cell, cases: int) -> str:
    """The fastest policies that pass for a promise, in a few words; with a star, for who picks it after looking."""
    if cell.promise.test(cases) is None:
        return f"takes {cases_needed(cell.promise.share, cell.promise.confidence)} cases"
    best, corrected = cell.best, cell.corrected_best
    told = [f"{best.speed:.2f}x ({told_trial(best)})"] if best is not None and best is not corrected else []
    told += [f"{corrected.speed:.2f}x* ({told_trial(corrected)})"] if corrected is not None else []
    return ", ".join(told) or "none"


def prompts(number: int, kind: str = "") -> str:
    """So many prompts, in words that fit one as well."""
    return f"{number:,} {kind}prompt{'' if number == 1 else 's'}"


def kind_remark(data: StudyData, result: Result) -> str:
    """Of which kind a policy is, where a study holds others than thresholds, and what its pipeline was set up with."""
    kind = "" if data.kinds == [THRESHOLDS] else KINDS[result.kind]
    prepared = told_preparation(result.preparation) if result.paired else ""
    return ", ".join(filter(None, (kind, prepared)))


def learned_policy(policy: Mapping[str, Any]) -> Policy | str:
    """A policy with learned weights, or a sentence that says why it cannot be read.

    Args:
        policy: As JSON, from a database.
    """
    try:
        return Policy.from_dict(dict(policy))
    except ProfileError as error:
        return f"This policy has learned weights, which cannot be read: {plain(error)}"


def captures_sentence(policy: Policy) -> str:
    """Where the keys and values of complete blocks come from, in words."""
    return {
        CLEAN: "Once a block is complete, a pass at its clean level gives the keys and values that later blocks "
        "attend to.",
        LAST: "Later blocks attend to the keys and values of a block's last recompute: no pass is made for them.",
    }[policy.captures]


def recomputed(policy: Policy) -> tuple[int, int]:
    """How many of the block updates of a frozen plan are recomputed, and how many there are."""
    letters = "".join(policy.plan or ()).replace(IDLE, "")
    return letters.count(LETTERS[Mode.RECOMPUTE]), len(letters)


def policy_sentence(policy: Mapping[str, Any]) -> str:
    """What a policy does, in words.

    Args:
        policy: As JSON, see `scope_runtime.Policy`.
    """
    if policy.get("gap_weights"):
        return _learned_sentence(learned_policy(policy))
    first = f"first {policy['warmup']} steps" if policy["warmup"] > 1 else "first step"
    tail = "" if not policy["tail"] else f" and last {policy['tail']}" if policy["tail"] > 1 else " and the last one"
    most = f"{policy['max_skip']} rows in a row" if policy["max_skip"] > 1 else "one row at a time"
    after = (
        "without a limit on accumulated change"
        if policy["predict_threshold"] is None
        else f"while the accumulated change stays below {policy['predict_threshold']:.3g}"
    )
    reuse = (
        f"reuses the last output below a change of {policy['cache_threshold']:.3g}, else extrapolates it"
        if policy["cache_threshold"]
        else "extrapolates the last outputs"
    )
    # Policies from before there was a choice were extrapolated along the noise level.
    axis = "its steps" if policy.get("axis") == "step" else "the noise level"
    orders = {0: "by the newest one", 1: f"along a line over {axis}", 2: f"along a parabola over {axis}"}
    indicator = "noise level" if policy["indicator"] == "noise-level" else "transformer's modulated input"
    return (
        f"Recomputes each block's {first}{tail}. In between it {reuse} "
        f"({orders[policy['order']]}), for at most {most} and {after}, which it reads from the "
        f"{indicator}. When a block is recomputed, "
        + (
            "so is every active block before it."
            if policy["granularity"] == "prefix"
            else "so are all active ones."
            if policy["granularity"] == "step"
            else "the others keep their own mode."
        )
        + _first_window_sentence(policy.get("first_window"))
    )


def _first_window_sentence(first: Mapping[str, Any] | None) -> str:
    """What is different in a video's first window, such as its first chunk."""
    if not first:
        return ""
    most = f"{first['max_skip']} rows" if first["max_skip"] > 1 else "one row"
    return (
        f" In a video's first window it recomputes the first {first['warmup']} steps and goes at most {most} without a "
        "recompute."
    )


def reasons(data: StudyData, result: Result, floors: Floors, speed: str, quality: str) -> list[str]:
    """Why this point, or why not: floors, front, and what the neighbours on the front trade for what."""
    lines = [_floors_line(result, floors)]
    comparable = data.points[~data.points["estimated"] & data.points["stopped"].isna()]
    line = front(comparable, speed, quality).reset_index(drop=True)
    at = line.index[line["trial"] == result.trial]
    if len(at):
        lines.append("No measured policy is both faster and closer to stock.")
        lines += _neighbours(line, int(at[0]), speed, quality)
    else:
        own = data.points[data.points["trial"] == result.trial].iloc[0]
        better = line[(line[speed] >= own[speed]) & (line[quality] >= own[quality])]
        if len(better):
            other = better.iloc[0]
            lines.append(
                f"Trial {int(other['trial'])} is at least as good in both: {other[speed]:.2f}x, "
                f"{_value(other, quality)}."
            )
    if best_point(data.points, floors, speed) == result.trial:
        lines.append(
            "It is the fastest policy above the floors, which `scope-calibrate export` picks by its default rule."
        )
    return lines


def _one_line(text: object) -> str:
    return " ".join(printable(text).split())


def _learned_sentence(policy: Policy | str) -> str:
    if isinstance(policy, str) or policy.gap_weights is None:
        return str(policy)
    computed, updates = recomputed(policy)
    newest = f"newest {policy.gap_weights.depth} outputs" if policy.gap_weights.depth > 1 else "newest output"
    return (
        f"Follows a frozen plan, the same for every video: of {updates:,} block updates {computed:,} are recomputed. "
        f"From each recompute up to the next, a block hands over one weighted sum of its {newest}, with weights that "
        f"were fitted to this plan. {captures_sentence(policy)}"
        + (" A video's first window has weights of its own." if policy.first_window is not None else "")
    )


def _floors_line(result: Result, floors: Floors) -> str:
    if result.stopped:
        return f"Not measured on all search prompts: {plain(result.stopped)}."
    if missed := floors.told_missed(result.figures, margin=True):
        return f"Misses {' and '.join(missed)}."
    return f"Holds every floor with the margin of {floors.safety_margin_db:g} dB."


def _neighbours(line: pd.DataFrame, at: int, speed: str, quality: str) -> list[str]:
    own = line.iloc[at]
    told = []
    for step, word in ((-1, "faster"), (1, "closer")):
        if 0 <= at + step < len(line):
            other = line.iloc[at + step]
            told.append(
                f"The next {word} on the front is trial {int(other['trial'])}: {other[speed]:.2f}x instead of "
                f"{own[speed]:.2f}x, {_value(other, quality)} instead of {_value(own, quality)}."
            )
    return told


def _value(point: pd.Series, quality: str) -> str:
    return f"{point[quality]:.1f} dB" if quality.endswith("_db") else f"{point[quality]:.4f}"
