"""The command line of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")]


@app.command()
def attention(as_json: AsJson = False, repeats: int = 5) -> None:
    """Per-block prefix attention against stock masked attention: time and peak memory by sequence length."""
    from studies.bench.attention import measure

    _show(measure(repeats), as_json)


@app.command()
def overhead(as_json: AsJson = False, repeats: int = 3) -> None:
    """What the runtime adds to the blocks it evaluates, on the reference pipeline and on a deep one."""
    from studies.bench.overhead import measure

    _show(measure(repeats), as_json)


@app.command()
def errors(as_json: AsJson = False, picture: Path | None = None) -> None:
    """The error analysis on the reference pipeline: estimated constants, the bound, and the measured error."""
    from studies.bench.errors import measure

    _show(measure(picture), as_json)


@app.command()
def store(as_json: AsJson = False, generations: int = 100_000) -> None:
    """What looking at a large study takes: its status, its front and a page of its generations."""
    from studies.bench.store import measure

    _show(measure(generations), as_json)


def _show(figures: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures, indent=2, allow_nan=False))
        return
    for line in figures if isinstance(figures, list) else [figures]:
        print("  ".join(f"{name} {value}" for name, value in line.items()))


if __name__ == "__main__":
    app()
