"""The report as a model card: the README.md of the folder that a profile lies in, or is pushed to a hub with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from calibrate.display.wording import plain
from calibrate.report import sections
from calibrate.report.content import Content
from calibrate.study.outputs import REPORT_MARK, companions

# Escapes that no Markdown needs: of these marks, of points within numbers and at the ends of sentences.
_HARMLESS = re.compile(r"\\([,();%'\"/?=]|(?<=\d\\)\.(?=\d)|(?<=[a-z]\\)\.(?= |$))")


def card(content: Content, folder: Path) -> bytes:
    """The file.

    Args:
        content: What is told.
        folder: Where the card goes: files that lie there are linked and shown.
    """
    parts = [
        f"---\ntags:\n- scope-calibrate\n---\n{REPORT_MARK}",
        f"# {plain(content.name)}",
        sections.headline(content),
    ]
    guarantee = content.evidence.get("guarantee")
    if guarantee:
        parts += [f"> {_text(guarantee['statement'])}", sections.promise_tested(guarantee)]
    if content.profile is not None:
        parts += [_grid(sections.against_stock(content)), sections.measured_on(content)]
    parts += _files(content, folder)
    if content.profile is not None:
        parts += ["## How to apply it", f"```python\n{sections.usage(content)}\n```"]
    parts += ["## What it does", sections.policy_told(content)]
    if facts := sections.environment(content):
        parts += ["## Environment", _grid(sections.Table("", ("", ""), facts))]
    limits = [_coded(limit) for limit in sections.limits(content)]
    parts += ["## Limits", "\n".join(f"- {limit}" for limit in limits)]
    return ("\n\n".join(part for part in parts if part) + "\n").encode()


def _text(text: str) -> str:
    """Text that is shown as it is, and that can be read in the file as well."""
    return _HARMLESS.sub(r"\1", plain(text))


def _coded(text: str) -> str:
    """Text that is shown as it is, but for what stands between backticks."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return _text(text)
    return " ".join(f"`{part}`" if number % 2 else _text(part) for number, part in enumerate(parts))


def _files(content: Content, folder: Path) -> list[str]:
    """Pictures of and links to what lies beside the card."""
    clip, plot, page = companions(content.path)
    linked = {content.path: "the profile", clip: "stock, SCOPE and their difference, as a clip", page: "the report"}
    there = {path: told for path, told in linked.items() if (folder / path.name).is_file()}
    shown = [f"![The front]({quote(plot.name)})"] if (folder / plot.name).is_file() else []
    return [*shown, "\n".join(f"- [{plain(path.name)}]({quote(path.name)}): {told}" for path, told in there.items())]


def _grid(table: sections.Table) -> str:
    lines: list[Sequence[str]] = [table.headers, ["---"] * len(table.headers), *table.rows]
    return "\n".join(f"| {' | '.join(cell if cell == '---' else _text(cell) for cell in line)} |" for line in lines)
