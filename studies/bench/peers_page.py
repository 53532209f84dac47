"""The figures of `studies.bench.peers` as a picture, and as tables on a page."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from calibrate.files import write_atomically

# Between these lines a page holds the tables; what stands around them is left as it is.
MARKS = ("<!-- figures: begin -->", "<!-- figures: end -->")

# Okabe-Ito, and a marker each: no two techniques differ in colour alone.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999", "#8A6D00")
_MARKERS = "os^Dv*XPd"
# What lies outside is drawn at the edge.
_LOWEST_DB, _HIGHEST_DB = 24.0, 44.0
_LEVELS = (35, 33)


def draw(figures: dict[str, Any], picture: Path) -> None:
    """Draws the curve of every technique: speed-up in work against mean PSNR.

    Args:
        figures: Of `studies.bench.peers.measure`.
        picture: Where to, a PNG.
    """
    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for (name, lines), colour, marker in zip(figures["curves"].items(), _COLOURS, _MARKERS, strict=False):
        speedups = [line["speedup"] for line in lines]
        dbs = [min(max(line["psnr_db"], _LOWEST_DB), _HIGHEST_DB) for line in lines]
        axes.plot(speedups, dbs, color=colour, marker=marker, markersize=6, linewidth=1.4, label=name, clip_on=False)
    for level in _LEVELS:
        axes.axhline(level, color="#000000", linewidth=0.8, linestyle="--", zorder=0)
    axes.set_ylim(_LOWEST_DB, _HIGHEST_DB)
    axes.set_xlabel("Speed-up (work of the stock pipeline / work done)")
    axes.set_ylabel("Mean PSNR of the clip (dB); what is above is drawn at the edge")
    axes.set_title(f"{figures['prompts']} fresh prompts, settings chosen on others")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(picture, buffer.getvalue())


def read(path: Path) -> dict[str, Any] | None:
    """Figures that were printed as JSON; None if the file holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return found if isinstance(found, dict) and {"curves", "search", "versions"} <= found.keys() else None


def has_marks(page: Path) -> bool:
    """Whether a page is there and holds both marks, in order."""
    return page.is_file() and len(_parts(page)) == 3


def write(figures: dict[str, Any], page: Path, picture: Path | None) -> None:
    """Puts the tables between the marks of a page.

    Args:
        figures: Of `studies.bench.peers.measure`.
        page: Markdown that has the marks.
        picture: Of the curves, to be shown above them.
    """
    before, _, after = _parts(page)
    tables = "\n".join(_tables(figures))
    if picture:
        shown = Path(os.path.relpath(picture, page.parent)).as_posix()
        tables = f"![Speed-up against mean PSNR, one curve per technique]({shown})\n\n{tables}"
    write_atomically(page, f"{before}{MARKS[0]}\n\n{tables}\n\n{MARKS[1]}{after}".encode())


def _parts(page: Path) -> list[str]:
    """What stands before, between and after the marks; without them, the whole page."""
    return re.split("|".join(map(re.escape, MARKS)), page.read_text(encoding="utf-8"))


def _tables(figures: dict[str, Any]) -> Iterator[str]:
    """Speed-ups at the levels, what they come to, every setting, and how many were tried."""
    yield _row("technique", *(f"at {level} dB" for level in _LEVELS), "settings tried")
    yield _row(*["---"] * (len(_LEVELS) + 2))
    for name in figures["curves"]:
        tried = sum(map(len, figures["search"][name].values()))
        yield _row(name, *(_at(level, name, figures) for level in _LEVELS), str(tried))
    yield ""
    for level in map(str, _LEVELS):
        yield _verdict(level, figures) + ("" if level == str(_LEVELS[-1]) else "\n")
    yield ""
    yield _row("technique", "setting", "less work", "less processor time", "PSNR, mean (dB)", "worst prompt (dB)")
    yield _row(*["---"] * 6)
    for name, lines in figures["curves"].items():
        for line in lines:
            dbs = (f"{line[key]:.1f}" for key in ("psnr_db", "psnr_worst_prompt_db"))
            yield _row(name, line["setting"], _times(line["speedup"]), _times(line["speedup_seconds"]), *dbs)
    yield ""
    packages = ", ".join(f"{package} {number}" for package, number in figures["versions"].items())
    yield f"Over {figures['prompts']} prompts, processor time over {figures['timed_prompts']} of them, with {packages}."


def _at(level: int, name: str, figures: dict[str, Any]) -> str:
    above = all(line["psnr_db"] >= level for line in figures["curves"][name])
    return _times(figures[f"at_{level}"][name]) + " (the fastest measured)" * above


def _verdict(level: str, figures: dict[str, Any]) -> str:
    ratio, best, spread = (figures[key][level] for key in ("ratio_to_best_peer", "best", "ratio_range"))
    if ratio is None:
        return f"At {level} dB there is nothing to compare: one side does not reach it."
    within = f" ({spread[0]:.2f} to {spread[1]:.2f} when prompts are drawn anew)" if spread else ""
    return (
        f"At {level} dB the best of ours ({best['ours']}) is {ratio:.2f} times the best peer ({best['peer']}){within}."
    )


def _times(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.2f}x"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', ' ') for cell in cells)} |"
