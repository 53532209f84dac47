"""The command line of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

STUDY = Path("studies/reference.yaml")
CACHE = Path("runs/bench")

StudyPath = Annotated[Path, typer.Option(help="Pipeline, cases and space.")]
Frames = Annotated[int | None, typer.Option(help="Frames of a clip; else the study's.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps; else the study's.")]
Cases = Annotated[int, typer.Option(help="Most search cases, and most held-out cases.")]
Cache = Annotated[Path, typer.Option(help="Where real runs are kept.")]
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
def compiled(as_json: AsJson = False, repeats: int = 3, backend: str = "inductor") -> None:
    """Graphs that compiled blocks take, blocks that ran uncompiled, and exact mode against stock, both compiled."""
    from studies.bench.compiled import measure

    _show(measure(repeats, backend), as_json)


@app.command()
def errors(as_json: AsJson = False, picture: Path | None = None) -> None:
    """The error analysis on the reference pipeline: estimated constants, the bound, and the measured error."""
    from studies.bench.errors import measure

    _show(measure(picture), as_json)


@app.command()
def rounding(
    as_json: AsJson = False,
    prompts: Annotated[int, typer.Option(help="Fresh prompts.")] = 12,
    change: Annotated[list[str] | None, typer.Option(help="Kind of change; repeatable, else all.")] = None,
    study: StudyPath = STUDY,
    frames: Frames = None,
    cache: Cache = CACHE,
) -> None:
    """Exact mode against stock, and stock against itself with other rounding. Interrupted, it goes on where it was."""
    from studies.bench.rounding import CHANGES, measure

    if unknown := [name for name in change or () if name not in CHANGES]:
        raise typer.BadParameter(f"--change: {unknown[0]!r} is not known; choose among {', '.join(CHANGES)}")
    _show(measure(study, frames, prompts, change or [*CHANGES], cache), as_json)


@app.command()
def store(as_json: AsJson = False, generations: int = 100_000) -> None:
    """What looking at a large study takes: its status, its front and a page of its generations."""
    from studies.bench.store import measure

    _show(measure(generations), as_json)


@app.command()
def replay(
    as_json: AsJson = False,
    policies: Annotated[int, typer.Option(help="Random policies to compare on.")] = 40,
    fitted: Annotated[int, typer.Option(help="Other policies that the sensitivity is fitted to.")] = 12,
    picks: Annotated[int, typer.Option(help="Candidates picked by replay, and as many at random.")] = 10,
    speedup: Annotated[float, typer.Option(help="The speed-up at which picks compete.")] = 4.0,
    study: StudyPath = STUDY,
    frames: Frames = None,
    steps: Steps = None,
    cases: Cases = 2,
    cache: Cache = CACHE,
) -> None:
    """Replay against real runs on prompts that the fit has not seen. Interrupted, it goes on where it was."""
    from studies.bench.real_runs import Size
    from studies.bench.replay import measure

    _show(measure(Size(study, frames, steps, cases, cache), policies, fitted, picks, speedup), as_json)


@app.command()
def search(
    as_json: AsJson = False,
    budget: Annotated[list[float] | None, typer.Option(help="Full generations per prompt; repeatable.")] = None,
    trials: Annotated[list[int] | None, typer.Option(help="Trials of plain Optuna; repeatable.")] = None,
    devices: Annotated[list[int] | None, typer.Option(help="Devices that search at once; repeatable.")] = None,
    seeds: Annotated[int, typer.Option(help="With --devices: how often each search is made.")] = 1,
    learned: Annotated[
        bool, typer.Option("--learned", help="Plans with learned weights, too; not with --devices.")
    ] = False,
    study: StudyPath = STUDY,
    frames: Frames = None,
    steps: Steps = None,
    cases: Cases = 2,
    cache: Cache = CACHE,
) -> None:
    """Search by replay against plain Optuna: held-out hypervolume by budget. Interrupted, it goes on where it was.

    With --devices, search by replay on so many made-up devices instead, at the last budget.
    """
    from studies.bench.real_runs import Size
    from studies.bench.search import measure

    size = Size(study, frames, steps, cases, cache)
    if devices:
        from studies.bench.devices import measure as measure_devices

        _show(measure_devices(size, devices, (budget or [12.0])[-1], seeds), as_json)
        return
    _show(measure(size, budget or [4.0, 6.0, 8.0, 12.0], trials or [25, 50, 100, 200], learned=learned), as_json)


@app.command()
def cluster(
    as_json: AsJson = False,
    candidates: Annotated[int, typer.Option(help="How many each search measures.")] = 16,
    study: StudyPath = STUDY,
    frames: Frames = None,
) -> None:
    """One study on one device and on two, of one CPU core each: time, what is found, and the driver's share."""
    from studies.bench.cluster import measure

    _show(measure(study, candidates, frames), as_json)


@app.command()
def axis(
    as_json: AsJson = False,
    schedule: Annotated[
        list[str] | None, typer.Option(help="Warm-up and most skips in a row, such as 2:4; repeatable.")
    ] = None,
    study: StudyPath = STUDY,
    frames: Frames = None,
    steps: Steps = None,
    cases: Cases = 3,
    cache: Cache = CACHE,
) -> None:
    """Extrapolation along the noise level and along the steps, by real runs. Interrupted, it goes on where it was."""
    from studies.bench.axis import measure
    from studies.bench.real_runs import Size

    pairs = [(int(warmup), int(skip)) for warmup, _, skip in (text.partition(":") for text in schedule or ["2:4"])]
    _show(measure(Size(study, frames, steps, cases, cache), pairs), as_json)


@app.command()
def learned(
    as_json: AsJson = False,
    prompts: Annotated[int, typer.Option(min=1, help="Fresh prompts that judge.")] = 24,
    fit_prompts: Annotated[int, typer.Option(min=1, max=6, help="Fresh prompts that weights are fitted on.")] = 3,
    profile: Annotated[Path | None, typer.Option(help="An exported profile, judged on the same prompts.")] = None,
    ablation: Annotated[bool, typer.Option("--ablation", help="What each part contributes, instead.")] = False,
    study: StudyPath = STUDY,
    cache: Cache = CACHE,
) -> None:
    """Plans with learned weights against Taylor at equal speed-up, paired. Interrupted, it goes on where it was."""
    from studies.bench.learned import ablation as measure_ablation
    from studies.bench.learned import measure

    if ablation:
        _show(measure_ablation(study, prompts, cache), as_json)
        return
    _show(measure(study, prompts, fit_prompts, cache, profile), as_json)


@app.command()
def viewer(
    as_json: AsJson = False,
    prompts: Annotated[int, typer.Option(min=1, help="Fresh prompts.")] = 6,
    study: StudyPath = STUDY,
    cache: Cache = CACHE,
) -> None:
    """Scores without a reference on stock, policies and spoilt clips. Interrupted, it goes on where it was."""
    from studies.bench.viewer import measure

    _show(measure(study, prompts, cache), as_json)


@app.command()
def families(
    as_json: AsJson = False,
    prompts: Annotated[int, typer.Option(min=1, help="Fresh prompts of the trained pipelines.")] = 16,
    family: Annotated[list[str] | None, typer.Option(help="Family's name; repeatable, else all.")] = None,
    cache: Cache = CACHE,
) -> None:
    """Every family by the same code: exact mode, a policy chosen on search prompts, and TaylorSeer beside it."""
    from studies.bench.families import measure, names

    known = names()
    if unknown := [name for name in family or () if name not in known]:
        raise typer.BadParameter(f"--family: {unknown[0]!r} is not known; choose among {', '.join(known)}")
    _show(measure(prompts, family or known, cache), as_json)


@app.command()
def peers(
    as_json: AsJson = False,
    prompts: Annotated[int, typer.Option(min=1, help="Fresh prompts.")] = 16,
    timed: Annotated[int, typer.Option(min=1, help="Of these, so many are generated again for the clock.")] = 2,
    technique: Annotated[list[str] | None, typer.Option(help="Its name; repeatable, else all.")] = None,
    figures: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="What --json printed before: nothing is measured.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draws the curves there.")] = None,
    page: Annotated[Path | None, typer.Option(help="Puts the tables there, between its marks.")] = None,
    study: StudyPath = STUDY,
    cache: Cache = CACHE,
) -> None:
    """Techniques of others and of this project on the same prompts. Interrupted, it goes on where it was."""
    from studies.bench import peers_page
    from studies.bench.peers import measure, names

    known = names()
    if unknown := [name for name in technique or () if name not in known]:
        raise typer.BadParameter(f"--technique: {unknown[0]!r} is not known; choose among {', '.join(known)}")
    if page and not peers_page.has_marks(page):
        begin, end = peers_page.MARKS
        raise typer.BadParameter(f"--page: {page} is no page with a line {begin} and a line {end} after it; add both")
    if figures:
        found = peers_page.read(figures)
        if found is None:
            raise typer.BadParameter(f"--figures: {figures} is not what peers --json prints; leave it out to measure")
    else:
        found = measure(study, prompts, timed, technique or known, cache)
    if picture:
        peers_page.draw(found, picture)
    if page:
        peers_page.write(found, page, picture)
    _show(found, as_json)


@app.command()
def guarantee(
    as_json: AsJson = False,
    prompts: Annotated[int, typer.Option(min=1, help="Fresh prompts that policies are measured on.")] = 120,
    draws: Annotated[int, typer.Option(min=1, help="How often search and guarantee prompts are drawn.")] = 300,
    floor: Annotated[float | None, typer.Option(help="On every prompt's PSNR in dB; with --share, its wish.")] = None,
    share: Annotated[float | None, typer.Option(help="Of prompts that hold it.")] = None,
    study: StudyPath = STUDY,
    cache: Cache = CACHE,
) -> None:
    """How often a promise is broken that the tests let pass. Interrupted, it goes on where it was."""
    from studies.bench.guarantee import measure

    asked = (floor, share) if floor is not None and share is not None else None
    _show(measure(study, prompts, draws, cache, asked), as_json)


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
