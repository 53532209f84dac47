"""`scope-calibrate`: results on standard output, with `--json` as JSON alone; progress and errors on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from calibrate.errors import CalibrateError
from calibrate.progress import Narrator

# Everything that loads torch is imported by the commands that need it, so that help comes at once.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Calibrates SCOPE on an autoregressive video diffusion pipeline and exports a measured profile.",
)

StudyPath = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")]

_USER_ERROR = 2
_INTERRUPTED = 130


@app.command()
def run(study: StudyPath, as_json: AsJson = False) -> None:
    """Run a study to its end: baselines, search, export. A killed run is continued by the same command."""
    from calibrate import workflow

    with (
        _explained(f"scope-calibrate run {study}"),
        Narrator() as narrator,
        workflow.open_session(study, narrator, create=True) as session,
    ):
        exported = workflow.run(session)
    _show_export(exported.to_dict(), as_json)


@app.command()
def status(study: StudyPath, as_json: AsJson = False) -> None:
    """Show how far a study has come."""
    from calibrate import workflow

    with _explained(), workflow.open_session(study, Narrator()) as session:
        state = workflow.status(session)
    if as_json:
        _print_json(state)
        return
    table = Table("", "", show_header=False, title=f"Study {state['study']}")
    table.add_row(
        "candidates", f"{state['candidates']} of {state['budget_trials']}, {state['feasible']} above the floors"
    )
    table.add_row("trials", ", ".join(f"{count} {name}" for name, count in state["trials"].items()))
    table.add_row("generations", ", ".join(f"{count} {kind}" for kind, count in state["generations"].items()))
    table.add_row("best", _describe(state["best"]) if state["best"] else "none above the floors yet")
    table.add_row("profiles", "\n".join(record["path"] for record in state["profiles"]) or "none yet")
    table.add_row("last activity", str(state["last_activity"]))
    table.add_row("storage", state["storage"])
    Console().print(table)


@app.command()
def front(study: StudyPath, as_json: AsJson = False) -> None:
    """List the best trade-offs between speed and quality that were measured so far."""
    from calibrate import workflow

    with _explained(), workflow.open_session(study, Narrator()) as session:
        results = workflow.pareto_front(session)
    if as_json:
        _print_json(results)
        return
    table = Table("trial", "fewer evaluations", "PSNR dB", "worst prompt dB", "SSIM", "floors", title="Front")
    for result in results:
        figures = result["figures"]
        table.add_row(
            str(result["trial"]),
            f"{result['speedup_evaluations']:.2f}x",
            f"{figures['psnr_db']:.1f}",
            f"{figures['psnr_worst_prompt_db']:.1f}",
            f"{figures['ssim']:.3f}",
            result["stopped"] or ("met" if result["feasible"] else "missed"),
        )
    Console().print(table)


@app.command()
def export(
    study: StudyPath,
    rule: Annotated[str | None, typer.Option(help="fastest, best-quality or knee; else the study's.")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Leave out slower policies; else the study's.")] = None,
    trial: Annotated[
        int | None, typer.Option(help="This trial's policy, whatever the rule and the floors say.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The profile's path; else the study's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Export a profile from what has been measured, with evidence from the held-out prompts."""
    from calibrate import workflow

    with _explained(), Narrator() as narrator, workflow.open_session(study, narrator) as session:
        settings = session.file.export_settings(rule, min_speedup, output)
        exported = workflow.export(session, settings, trial)
    _show_export(exported.to_dict(), as_json)


@app.command()
def verify(
    profile: Annotated[Path, typer.Argument(metavar="PROFILE.json", help="The profile.")],
    study: Annotated[
        Path | None, typer.Argument(metavar="[STUDY.yaml]", help="Take held-out prompts and settings from this study.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="The pipeline's folder, if it has moved.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a profile again on this machine, on held-out prompts: stock, exact and SCOPE in one run."""
    from calibrate import workflow

    with _explained(), Narrator() as narrator:
        figures = workflow.verify(profile, study, model, narrator)
    if as_json:
        _print_json(figures)
    else:
        _print_figures(figures)


@app.command()
def dashboard(
    storage: Annotated[str | None, typer.Option(help="URL of the database; else the only one in runs/.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8501,
    address: Annotated[str, typer.Option(help="Where to listen; the default is this machine alone.")] = "127.0.0.1",
    headless: Annotated[bool, typer.Option("--headless", help="Do not open a browser.")] = False,
) -> None:
    """Look at the studies of a database in the browser: trade-offs, clips, profiles. It only reads."""
    from calibrate import serve

    with _explained():
        serve.serve(storage or serve.default_storage(), address, port, headless=headless)


def main() -> None:
    """The console entry point."""
    app()


@contextmanager
def _explained(continue_with: str | None = None) -> Iterator[None]:
    """Ends the command with one sentence and exit code 2 for every failure that a user can cause or mend."""
    from calibrate.failures import explained

    try:
        with explained():
            yield
    except CalibrateError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(_USER_ERROR) from None
    except KeyboardInterrupt:
        hint = f" Everything measured is kept; continue with `{continue_with}`." if continue_with else ""
        print(f"Stopped.{hint}", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED) from None


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, allow_nan=False))


def _show_export(exported: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(exported)
        return
    _print_figures(exported["evidence"])
    console = Console()
    for name, by in exported["missed_floors"].items():
        console.print(
            f"[bold]The held-out prompts miss the floor {name} by {by:.3g}.[/] The profile says so. Raise "
            "floors.safety_margin_db and run the study again."
        )
    for name in ("profile", "clip", "plot"):
        console.print(f"{name:8} {exported[name]}", highlight=False)


def _print_figures(figures: dict[str, Any]) -> None:
    """The before-and-after table."""
    table = Table("", "stock", "exact", "SCOPE", title=f"{figures['n']} held-out prompts")
    exact, worst = figures["exact"], figures["worst_prompt"]
    rows = (
        ("fewer block evaluations", "1.00x", "", f"{figures['speedup_evaluations']:.2f}x"),
        ("denoising faster", "1.00x", f"{exact['speedup_denoise']:.2f}x", f"{figures['speedup_denoise']:.2f}x"),
        ("end to end faster", "1.00x", "", f"{figures['speedup_end_to_end']:.2f}x"),
        ("PSNR, mean (dB)", "", "", f"{figures['psnr_db']:.1f}"),
        ("PSNR, worst prompt (dB)", "", "", f"{figures['psnr_worst_prompt_db']:.1f}"),
        ("PSNR, worst frame (dB)", "", "", f"{figures['psnr_worst_frame_db']:.1f}"),
        ("SSIM", "", "", f"{figures['ssim']:.4f}"),
        ("PSNR of motion (dB)", "", "", f"{figures['temporal_psnr_db']:.1f}"),
        ("largest latent difference", "", f"{exact['max_abs_diff']:.1e}", ""),
    )
    for row in rows:
        table.add_row(*row)
    table.caption = f"Worst prompt: {worst['prompt']} (seed {worst['seed']}), {worst['psnr_db']:.1f} dB"
    Console().print(table)


def _describe(result: dict[str, Any]) -> str:
    figures = result["figures"]
    return (
        f"trial {result['trial']}: {result['speedup_evaluations']:.2f}x fewer evaluations, "
        f"{figures['psnr_db']:.1f} dB, worst prompt {figures['psnr_worst_prompt_db']:.1f} dB"
    )


if __name__ == "__main__":
    main()
