"""The command line of the benchmarks."""

from __future__ import annotations

import json
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
def dashboard(as_json: AsJson = False, trials: int = 20_000, repeats: int = 5) -> None:
    """Seconds to the dashboard's first paint and per click, in chromium, on a made-up study."""
    from studies.bench.dashboard import measure

    _show(measure(trials, repeats), as_json)


def _show(figures: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures, indent=2, allow_nan=False))
        return
    for line in figures if isinstance(figures, list) else [figures]:
        print("  ".join(f"{name} {value}" for name, value in line.items()))


if __name__ == "__main__":
    app()
