"""`scope-calibrate`: results on standard output, with `--json` as JSON alone; progress and errors on standard error."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from calibrate.errors import CalibrateError
from calibrate.progress import Narrator, PlainConsole, printable

# Everything that loads torch is imported by the commands that need it, so that help comes at once.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Calibrates SCOPE on an autoregressive video diffusion pipeline and exports a measured profile.",
)

StudyPath = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")]

# Goals, in place of what the study asks for.
TargetSpeedup = Annotated[
    float | None, typer.Option(help="Fewest times by which block evaluations must fall; best quality beyond it.")
]
MinPsnr = Annotated[
    float | None, typer.Option(help="Lowest mean PSNR in dB; the study's safety margin is asked for on top.")
]
MinSsim = Annotated[float | None, typer.Option(help="Lowest mean SSIM.")]
MaxMemory = Annotated[str | None, typer.Option(help="Most memory that a generation may take, such as 40GB.")]

_WATCH_SECONDS = 2.0
_AGAIN_SECONDS = 0.05
_USER_ERROR = 2
_EVIDENCE_FAILED = 3
_INTERRUPTED = 130


@app.command()
def run(
    study: StudyPath,
    target_speedup: TargetSpeedup = None,
    min_psnr: MinPsnr = None,
    min_ssim: MinSsim = None,
    max_memory: MaxMemory = None,
    warm_start: Annotated[
        str | None,
        typer.Option(
            metavar="PROFILE.json|STUDY.yaml",
            help="Try this profile's policy and its neighbours first, or this study's best.",
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(min=1, help="How many devices to run on; without --ray, of this machine (GPUs, or CPU cores)."),
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="auto|HOST:PORT", help="Join this Ray cluster and take its devices.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a study to its end: baselines, search, export. A killed run is continued by the same command."""
    from calibrate import workflow
    from calibrate.pool.pool import Where
    from calibrate.session import open_session

    with (
        _explained(shlex.join(["scope-calibrate", "run", str(study), *_told_where(devices, ray)])),
        _terminable(),
        Narrator() as narrator,
        open_session(study, narrator, create=True) as session,
    ):
        session.file.aim(target_speedup=target_speedup, min_psnr=min_psnr, min_ssim=min_ssim, max_memory=max_memory)
        with _table_beside_failure():
            exported = workflow.run(session, warm_start, Where(devices, ray))
    _show_export(exported.to_dict(), as_json)


def _told_where(devices: int | None, ray: str | None) -> list[str]:
    told = [] if devices is None else ["--devices", str(devices)]
    return told if ray is None else [*told, "--ray", ray]


@app.command()
def doctor(study: StudyPath, as_json: AsJson = False) -> None:
    """Check all of a study that can be checked before it runs; exit code 2 if a check fails."""
    with _explained():
        from calibrate.doctor import examine
        from calibrate.study.study_file import StudyFile

        file = StudyFile(study)
        checks = []
        for check in examine(file):
            checks.append(check)
            if not as_json:
                print(f"{check.state:8} {check.name:9} {check.message}", flush=True)
    sound = all(check.state != "failed" for check in checks)
    if as_json:
        _print_json({"study": file.study.name, "ok": sound, "checks": [check.to_dict() for check in checks]})
    if not sound:
        raise typer.Exit(_USER_ERROR)


@app.command()
def status(
    study: StudyPath,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every few seconds until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a study has come."""
    from calibrate import overview
    from calibrate.session import open_session

    if watch and as_json:
        raise typer.BadParameter("--watch shows a table; leave out --json or --watch")
    with _explained(), open_session(study, Narrator()) as session:
        if watch:
            _watch(lambda: _status_table(overview.status(session)))
            return
        state = overview.status(session)
    if as_json:
        _print_json(state)
    else:
        PlainConsole().print(_status_table(state))


@app.command()
def delete(
    study: StudyPath,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete all records of a study from its database; cached clips and exported profiles stay."""
    from calibrate import overview
    from calibrate.session import open_session

    with _explained(), open_session(study, Narrator()) as session:
        counts = session.find().counts()
        if not yes:
            typer.confirm(
                f"Delete study {session.file.study.name} with {sum(counts.values())} generations?", abort=True, err=True
            )
        overview.delete(session)
    print(f"Deleted study {session.file.study.name}; cached clips are left in {session.file.study.cache_folder}.")


@app.command()
def rename(study: StudyPath, name: Annotated[str, typer.Argument(metavar="NEW_NAME")]) -> None:
    """Rename a study in its database, and say what to write into its file."""
    from calibrate import overview
    from calibrate.session import open_session

    with _explained(), open_session(study, Narrator()) as session:
        lines = overview.rename(session, name)
    print(f"Renamed; now put these lines into {study} in place of what it says there:")
    for line in lines:
        print(line)


@app.command()
def compare(
    studies: Annotated[list[Path], typer.Argument(metavar="STUDY.yaml...", help="Two or more study files.")],
    as_json: AsJson = False,
) -> None:
    """Set studies side by side: settings that differ, how far they came, their best and their exported figures."""
    from calibrate import overview

    with _explained():
        compared = overview.compare(studies)
    if as_json:
        _print_json(compared)
        return
    table = Table("", *(entry["study"] for entry in compared), title="Studies")
    for name, key in (("candidates", "candidates"), ("above the floors with their margin", "feasible")):
        table.add_row(name, *(str(entry[key]) for entry in compared))
    if any(entry["set_apart"]["candidates"] for entry in compared):
        told = (_told_set_apart(entry["set_apart"]) if entry["set_apart"]["candidates"] else "" for entry in compared)
        table.add_row("measured before", *told)
    table.add_row(
        "best on search prompts", *(_describe(entry["best"]) if entry["best"] else "none yet" for entry in compared)
    )
    table.add_row("held out", *(_describe_evidence(entry["exported"]) for entry in compared))
    for setting in compared[0]["differing_settings"]:
        table.add_row(setting, *(str(entry["differing_settings"][setting]) for entry in compared))
    PlainConsole().print(table)


@app.command()
def generations(
    study: StudyPath,
    form: Annotated[str, typer.Option("--format", help="csv or json (one object per line).")] = "csv",
    output: Annotated[Path | None, typer.Option(help="A file; else standard output.")] = None,
) -> None:
    """List every generation of a study with its settings, cost, figures and environment."""
    from calibrate.export.listing import FORMATS, render
    from calibrate.files import write_atomically
    from calibrate.session import open_session
    from calibrate.study.outputs import require_file

    if form not in FORMATS:
        raise typer.BadParameter(f"--format: {form!r} is not known; write csv or json")
    with _explained(), open_session(study, Narrator()) as session:
        if output is not None:
            require_file(session.file, output, "--output")
        lines = render(session.find(), form)
        if output is None:
            sys.stdout.writelines(lines)
        else:
            write_atomically(output, (line.encode() for line in lines))


def _watch(table: Callable[[], Table]) -> None:
    """Shows a table anew until the user has seen enough."""
    with contextlib.suppress(KeyboardInterrupt), Live(table(), auto_refresh=False) as live:
        while True:
            time.sleep(_WATCH_SECONDS)
            live.update(table(), refresh=True)


def _told_set_apart(set_apart: dict[str, Any]) -> str:
    """What was measured by an earlier program and is not compared with new figures."""
    return f"{set_apart['candidates']} candidates, set apart: their PSNR is the {set_apart['psnr_db']}"


def _status_table(state: dict[str, Any]) -> Table:
    from calibrate.results.result import told_preparation

    table = Table("", "", show_header=False, title=f"Study {state['study']}")
    table.add_row(
        "candidates",
        f"{state['candidates']} of {state['budget_trials']}, {state['feasible']} above the floors"
        + (f" with their margin of {state['margin_db']:g} dB" if state["margin_db"] else ""),
    )
    if state["set_apart"]["candidates"]:
        table.add_row("measured before", _told_set_apart(state["set_apart"]))
    budget = state["budget_equivalents"]
    table.add_row(
        "spent",
        f"{state['equivalents']:.1f}{'' if budget is None else f' of {budget:g}'} full generations per search prompt",
    )
    table.add_row("trials", ", ".join(f"{count} {name}" for name, count in state["trials"].items()))
    table.add_row("generations", ", ".join(f"{count} {kind}" for kind, count in state["generations"].items()))
    if state["guarantee_equivalents"]:
        table.add_row("spent on the guarantee", f"{state['guarantee_equivalents']:.1f} full generations in all")
    table.add_row("best on search prompts", _describe(state["best"]) if state["best"] else "none above the floors yet")
    if state["guarantee"]:
        best = state["guarantee"]["best"]
        told = f"{best['told']}, {best['speed']:.2f}x" if best else "not passed by any policy yet"
        table.add_row("guarantee", f"{told}: {state['guarantee']['statement']}")
    if state["exported"]:
        table.add_row("held out, newest profile", _describe_evidence(state["exported"]))
    for indicator, fit in state["change_maps"].items():
        rank = fit["rank_correlation"]
        table.add_row(
            f"change map of {indicator}",
            f"R2 {fit['r_squared']:.2f}, rank correlation {'none' if rank is None else f'{rank:.2f}'}, "
            f"{fit['pairs']} pairs from {fit['prompts']} prompts",
        )
    for record in state["preparations"]:
        speed = record["exact_speedup"]
        told = record["dropped"] and f"dropped, {record['dropped']}"
        table.add_row(
            f"set up: {told_preparation(record['preparation'])}", told or f"searched; exact mode {speed:.2f}x as fast"
        )
    table.add_row("profiles", "\n".join(record["path"] for record in state["profiles"]) or "none yet")
    table.add_row("run by", _told_driver(state["driver"]))
    table.add_row("failures", "\n".join(f"{count} x {reason}" for reason, count in state["failures"].items()) or "none")
    table.add_row("last activity", str(state["last_activity"]))
    table.add_row("storage", state["storage"])
    return table


def _told_driver(driver: dict[str, Any] | None) -> str:
    if driver is None:
        return "nobody at the moment"
    left = driver["seconds_left"]
    told = "" if left is None else f", about {timedelta(seconds=round(left))} left"
    lines = [f"process {driver['process']} on {driver['host']}: {driver['stage']}{told}"]
    for device in driver["devices"]:
        since = timedelta(seconds=max(0, round(time.time() - device["since"])))
        lines.append(f"{device['device']}: {device['doing']} ({since})")
    return "\n".join(lines)


@app.command()
def front(
    study: StudyPath,
    earlier: Annotated[
        bool, typer.Option("--earlier", help="Those that an earlier program measured by other figures.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the best trade-offs between speed and quality that were measured so far."""
    from calibrate import overview
    from calibrate.results.result import told_preparation
    from calibrate.session import open_session

    with _explained(), open_session(study, Narrator()) as session:
        found = overview.pareto_front(session, earlier=earlier)
        floors = session.file.study.floors
    results, set_apart = found.entries, found.set_apart
    if as_json:
        _print_json(results)
        return
    title = "Front" + (f" (PSNR: {results[0]['psnr']})" if results else "")
    scores = list(floors.scores)
    paired = ["denoising faster", "set up"] if any(result["paired"] for result in results) else []
    table = Table(
        "trial",
        "kind",
        "fewer evaluations",
        *paired,
        "PSNR dB",
        "worst prompt dB",
        "SSIM",
        *scores,
        "floors",
        title=title,
    )
    for result in results:
        figures = result["figures"]
        table.add_row(
            str(result["trial"]),
            result["kind"],
            f"{result['speedup_evaluations']:.2f}x",
            *([f"{result['speedup_denoise']:.2f}x", told_preparation(result["preparation"])] if paired else []),
            f"{figures['psnr_db']:.1f}",
            f"{figures['psnr_worst_prompt_db']:.1f}",
            f"{figures['ssim']:.3f}",
            *(_score(figures, name) for name in scores),
            result["stopped"] or ("met" if result["feasible"] else f"misses {' and '.join(result['missed'])}"),
        )
    table.caption = f"Floors are met{floors.with_margin}" if floors.with_margin else None
    PlainConsole().print(table)
    if set_apart["candidates"] and not earlier:
        print(f"Measured before: {_told_set_apart(set_apart)}; `front --earlier` lists them.")


@app.command()
def export(
    source: Annotated[
        str,
        typer.Argument(metavar="STUDY.yaml|PROFILE.json", help="The study file; with --format, a profile will do."),
    ],
    rule: Annotated[str | None, typer.Option(help="fastest, best-quality or knee; else the study's.")] = None,
    target_speedup: TargetSpeedup = None,
    min_psnr: MinPsnr = None,
    min_ssim: MinSsim = None,
    max_memory: MaxMemory = None,
    trial: Annotated[
        int | None, typer.Option(help="This trial's policy, whatever the rule and the floors say.")
    ] = None,
    promise: Annotated[
        str | None,
        typer.Option(
            metavar="FLOOR_DB,SHARE",
            help="This promise of the table, such as 28,0.8, in place of the study's guarantee; tested at a confidence "
            "that is corrected for the table's size.",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="cache-dit",
            help="Measure nothing: write the profile that is there as a configuration of cache-dit, whose quality is "
            "not known.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The path of what is written; else the study's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Export a profile from what has been measured, with evidence from the held-out prompts."""
    if form is not None:
        if any(value is not None for value in (rule, target_speedup, min_psnr, min_ssim, max_memory, trial, promise)):
            raise typer.BadParameter("--format takes a profile as it is; leave out what picks a policy")
        _convert(source, form, output, as_json)
        return
    from calibrate import workflow
    from calibrate.session import open_session

    with _explained(), Narrator() as narrator, open_session(Path(source), narrator) as session:
        session.file.aim(target_speedup=target_speedup, min_psnr=min_psnr, min_ssim=min_ssim, max_memory=max_memory)
        settings = session.file.export_settings(rule, output)
        with _table_beside_failure():
            exported = workflow.export(session, settings, trial, _floor_and_share(promise))
    _show_export(exported.to_dict(), as_json)


def _convert(source: str, form: str, output: Path | None, as_json: bool) -> None:
    """Writes a profile for another program."""
    from calibrate.export.cache_dit import FORMAT, convert

    if form != FORMAT:
        raise typer.BadParameter(f"--format: {form!r} is not known; write {FORMAT}")
    with _explained():
        path = convert(source, output)
    if as_json:
        _print_json({"path": str(path)})
    else:
        print(path.read_text(), end="")
        PlainConsole(stderr=True).print(f"Written to {path}", highlight=False)


def _floor_and_share(promise: str | None) -> tuple[float, float] | None:
    """The two numbers of ``--promise``."""
    if promise is None:
        return None
    try:
        floor, share = (float(part) for part in promise.split(","))
    except ValueError as error:
        raise CalibrateError(
            f"--promise: {promise!r} is not a floor in dB and a share; write them as 28,0.8."
        ) from error
    return floor, share


@app.command()
def promises(study: StudyPath, as_json: AsJson = False) -> None:
    """Show what can be promised of prompts that nobody has seen, by what was measured on the guarantee cases."""
    from calibrate import overview
    from calibrate.session import open_session

    with _explained(), open_session(study, Narrator()) as session:
        table = overview.promises(session).to_dict()
    if as_json:
        _print_json(table)
    else:
        _print_promises(table, PlainConsole())


@contextmanager
def _table_beside_failure() -> Iterator[None]:
    """Shows what can be promised where what was asked for cannot."""
    from calibrate.export.export import NothingPromised

    try:
        yield
    except NothingPromised as error:
        _print_promises(error.table.to_dict(), PlainConsole(stderr=True))
        raise


def _print_promises(promised: dict[str, Any], console: PlainConsole) -> None:
    """The study's own wish, and the table of others."""
    from calibrate.results.result import told_preparation

    own = "the study's guarantee" if promised["declared"] else "the study's guarantee, changed after it was tested"
    told = f"{promised['best']['told']} passed" if promised["best"] else "no policy has passed"
    console.print(f"Asked for ({own}): {promised['statement']} {told[0].upper()}{told[1:]}.", highlight=False)
    prepares = any(entry["speedup_denoise"] is not None for entry in promised["policies"])
    paired = ["denoising faster", "set up"] if prepares else []
    title = "Tested, careful ones first"
    tested = Table("trial", "fewer evaluations", *paired, "cases", "misses", "guarantee", title=title)
    for entry in promised["policies"]:
        passed = {True: "passed", False: "failed", None: "open" if entry["measured"] else "not tested"}[entry["passed"]]
        speedup = entry["speedup_evaluations"]
        tested.add_row(
            str(entry["trial"]), f"{speedup:.2f}x" if speedup else "",
            *([f"{entry['speed']:.2f}x", told_preparation(entry["preparation"])] if paired else []),
            f"{entry['measured']} of {promised['cases']}", str(entry["misses"]), entry["failed"] or passed,
        )  # fmt: skip
    console.print(tested)
    cells = promised["cells"]
    shares = sorted({cell["share"] for cell in cells})
    table = Table("every prompt's PSNR", *(f"{share:g} of prompts" for share in shares), title="What can be promised")
    for floor in sorted({cell["floor_db"] for cell in cells}):
        row = {cell["share"]: _told_cell(cell, promised["cases"]) for cell in cells if cell["floor_db"] == floor}
        table.add_row(f"{floor:g} dB", *(row.get(share, "the guarantee") for share in shares))
    table.caption = (
        f"The fastest policy{' (denoising)' if prepares else ''} that passes at confidence "
        f"{promised['confidence']:.4g}; with *, the fastest that does at "
        f"{promised['corrected_confidence']:.4g}, which is corrected for picking one of {promised['corrected_for']} "
        "after looking: export that with --promise"
    )
    console.print(table)
    if promised["likeness"] is not None:
        told = promised["likeness"]["told"]
        console.print(f"{told[0].upper()}{told[1:]}.", highlight=False)


def _told_cell(cell: dict[str, Any], cases: int) -> str:
    """The fastest policy that passes, and the one that does for who picks it after looking."""
    best, corrected = (cell[name] for name in ("best", "corrected_best"))
    if cell["takes"] > cases:
        return f"takes {cell['takes']} cases"
    if best is None and corrected is None:
        return "none"
    told = [] if best is None or best == corrected else [f"{best['speed']:.2f}x ({best['told']})"]
    if corrected is not None:
        told.append(f"{corrected['speed']:.2f}x* ({corrected['told']})")
    return ", ".join(told)


@app.command()
def verify(
    profile: Annotated[
        str, typer.Argument(metavar="PROFILE.json", help="The profile: a file, or hf://owner/name/profile.json.")
    ],
    study: Annotated[
        Path | None, typer.Argument(metavar="[STUDY.yaml]", help="Its model, settings and held-out prompts are used.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="The pipeline's folder, in place of the study's; or without a study, for recorded prompts."),
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option(metavar="CASES.yaml|json", help="A list of further {prompt, seed} to measure and count."),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit with 3 unless the profile's evidence was checked and holds, and no promise of it is broken.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a profile again on this machine, on held-out prompts: stock, exact and SCOPE in one run."""
    from calibrate import workflow
    from calibrate.study.cases_file import read_cases

    with _explained(), Narrator() as narrator:
        further = read_cases(cases) if cases is not None else ()
        figures = workflow.verify(profile, study, model, narrator, further)
    if as_json:
        _print_json(figures)
    else:
        _print_figures(figures)
        _print_missed(figures["told_missed"] or ())
        _print_further([case for case in figures["cases"] if case["further"]])
        _print_recheck(figures["evidence"])
        _print_promise(figures["promise"])
    broken = (figures["promise"] or {}).get("broken", False)
    if strict and (broken or not (figures["evidence"] or {}).get("holds")):
        raise typer.Exit(_EVIDENCE_FAILED)


@app.command()
def report(
    source: Annotated[
        Path, typer.Argument(metavar="STUDY.yaml|PROFILE.json", help="A study with its records, or a profile alone.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; else NAME.html or README.md beside the profile.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="A model card for the profile's folder in place of a page.")
    ] = False,
) -> None:
    """Write all there is to say of a study or a profile on one page, which needs neither network nor database."""
    from calibrate import overview

    with _explained():
        written = overview.report(source, output, markdown=markdown)
    print(f"report   {written}")


@app.command()
def dashboard(
    storage: Annotated[str | None, typer.Option(help="URL of the database; else the only one in runs/.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8501,
    address: Annotated[str, typer.Option(help="Where to listen; the default is this machine alone.")] = "127.0.0.1",
    headless: Annotated[bool, typer.Option("--headless", help="Do not open a browser.")] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Also answer requests for this host, such as a proxy's; may be repeated."),
    ] = None,
    cache: Annotated[
        list[Path] | None,
        typer.Option(help="Also show clips from this folder, where a study has its cache; may be repeated."),
    ] = None,
) -> None:
    """Look at the studies of a database in the browser: trade-offs, clips, profiles. It only reads."""
    from calibrate import serve

    with _explained():
        serve.serve(
            storage or serve.default_storage(),
            address,
            port,
            headless=headless,
            hosts=allow_host or (),
            caches=cache or (),
        )


def main() -> None:
    """The console entry point."""
    app()


@contextmanager
def _explained(continue_with: str | None = None) -> Iterator[None]:
    """Ends the command with one sentence and exit code 2 for every failure that a user can cause or mend."""
    from calibrate.failures import explained

    try:
        with explained(), _heard_again():
            yield
    except CalibrateError as error:
        print(f"Error: {printable(error)}", file=sys.stderr)
        raise typer.Exit(_USER_ERROR) from None
    except KeyboardInterrupt:
        hint = f" Everything measured is kept; continue with `{continue_with}`." if continue_with else ""
        print(f"Stopped.{hint}", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED) from None


@contextmanager
def _heard_again() -> Iterator[None]:
    """Repeats a Ctrl-C that Python drops because it came while a weak reference's callback or a finaliser ran."""
    before = sys.unraisablehook
    main = threading.main_thread().ident or 0

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            # From a moment later on: here it would be dropped once more.
            threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, (main, signal.SIGINT)).start()
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _terminable() -> Iterator[None]:
    """Treats a request to terminate, which schedulers send before they kill, like Ctrl-C: work is given back."""

    def stop(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, allow_nan=False))


def _show_export(exported: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(exported)
        return
    _print_figures(exported["evidence"])
    console = PlainConsole()
    searched = exported["evidence"]["search"]
    if searched["metric_version"] != exported["evidence"]["metric_version"]:
        console.print(
            "The policy was measured on the search prompts by an earlier program: its PSNR there is the "
            f"{_psnr_meaning(searched)}. The held-out figures are new."
        )
    guarantee = exported["evidence"].get("guarantee")
    mend = "" if guarantee else " Raise floors.safety_margin_db and run the study again."
    _print_missed(exported["told_missed"], f" The profile says so.{mend}")
    if exported["promises"]:
        _print_promises(exported["promises"], console)
    if guarantee:
        console.print(f"Promised: {guarantee['statement']} {guarantee['assumption']}", highlight=False)
        _print_counted(exported["promise"])
    for name in ("profile", "clip", "plot", "report"):
        console.print(f"{name:8} {exported[name]}", highlight=False)


def _print_missed(told: Sequence[str], mend: str = "") -> None:
    """The floors that held-out prompts miss."""
    for missed in told:
        PlainConsole().print(Text.assemble((f"The held-out prompts miss the floor {missed}.", "bold"), mend))


def _print_figures(figures: dict[str, Any]) -> None:
    """The before-and-after table."""
    from calibrate.display.comparison import HEADERS, comparison

    table = Table(*HEADERS, title=f"{figures['n']} held-out prompts")
    exact, worst = figures["exact"], figures["worst_prompt"]
    for row in comparison(figures):
        table.add_row(*row)
    if not figures["timing"]["steady"]:
        told = Text.assemble(("The times vary more than asked for:", "bold"), " take the speed-ups as rough figures.")
        PlainConsole(stderr=True).print(told)
    if exact["holds"] is False:
        told = Text.assemble(
            ("Exact mode is further from stock than rounding explains:", "bold"),
            " please report it, with the versions that the profile names.",
        )
        PlainConsole(stderr=True).print(told)
    table.caption = f"Worst prompt: {worst['prompt']} (seed {worst['seed']}), {worst['psnr_db']:.1f} dB"
    PlainConsole().print(table)


def _print_recheck(evidence: dict[str, Any] | None) -> None:
    """Whether the profile's figures still hold, and if not, which and by how much."""
    console = PlainConsole()
    if evidence is None:
        console.print("Other prompts than the profile's: its evidence was not checked.")
        return
    if evidence["differs"]:
        console.print(f"Other than when the profile was made: {', '.join(evidence['differs'])}", highlight=False)
    if evidence["holds"]:
        console.print("The profile's evidence holds on this machine.", style="bold")
        return
    if evidence["not_comparable"]:
        names, meanings = evidence["not_comparable"].keys(), evidence["not_comparable"].values()
        console.print(
            f"Measured in the old way ({next(iter(meanings))}) and not to be compared: {', '.join(names)}. Export the "
            "profile again to have them checked.",
            highlight=False,
        )
    fallen = [entry for entry in evidence["figures"] if not entry["holds"]]
    if not fallen:
        console.print("All other figures of the profile's evidence hold on this machine.", style="bold")
        return
    console.print("The profile's evidence does not hold on this machine:", style="bold")
    for entry in fallen:
        console.print(
            f"  {entry['figure']}: {entry['measured']:.4g} here, {entry['recorded']:.4g} recorded "
            f"(tolerance {entry['tolerance']:.3g})",
            highlight=False,
        )


def _score(figures: dict[str, float], name: str) -> str:
    """The mean of a score, or that there is none."""
    from calibrate.spec.score_floor import score_figure

    found = figures.get(score_figure(name, "mean"))
    return "not measured" if found is None else f"{found:.3g}"


def _print_further(cases: list[dict[str, Any]]) -> None:
    """The further cases, one by one."""
    if not cases:
        return
    table = Table("prompt", "fewer evaluations", "PSNR dB", "SSIM", "promise", title=f"{len(cases)} further prompts")
    for case in cases:
        kept = "" if "missed" not in case else f"misses {' and '.join(case['missed'])}" if case["missed"] else "held"
        table.add_row(
            f"{case['prompt']} (seed {case['seed']})", f"{case['speedup_evaluations']:.2f}x", f"{case['psnr_db']:.1f}",
            f"{case['ssim']:.3f}", kept,
        )  # fmt: skip
    PlainConsole().print(table)


def _print_promise(promise: dict[str, Any] | None) -> None:
    """What was promised, and whether that can be, going by what was counted."""
    if promise is not None:
        PlainConsole().print(f"Promised: {promise['statement']}", highlight=False)
        _print_counted(promise)


def _print_counted(promise: dict[str, Any]) -> None:
    console = PlainConsole()
    counted = f"of {promise['n']} prompts that it was not tested on, {promise['held']} hold the floors"
    if promise["broken"]:
        console.print(
            f"The promise is broken: {counted}; so few, or fewer, would be seen {100 * promise['chance']:.2g} times in "
            f"100 if {promise['share']:g} of all prompts did.",
            style="bold",
            highlight=False,
        )
    else:
        console.print(f"{counted[0].upper()}{counted[1:]}, which the promise does not exclude.", highlight=False)


def _describe_evidence(evidence: dict[str, Any] | None) -> str:
    if evidence is None:
        return "nothing exported"
    return f"{evidence['speedup_denoise']:.2f}x faster, {evidence['psnr_db']:.1f} dB ({_psnr_meaning(evidence)})"


def _psnr_meaning(record: dict[str, Any]) -> str:
    """What PSNR means in a profile's evidence or a result."""
    from calibrate.quality.metrics import metric_version, psnr_meaning

    return psnr_meaning(metric_version(record))


def _describe(result: dict[str, Any]) -> str:
    from calibrate.results.result import told_preparation, told_scores

    figures = result["figures"]
    time = f"{result['speedup_denoise']:.2f}x faster ({told_preparation(result['preparation'])}), "
    return (
        f"trial {result['trial']} ({result['kind']}): {result['speedup_evaluations']:.2f}x fewer evaluations, "
        f"{time if result['paired'] else ''}"
        f"{figures['psnr_db']:.1f} dB, worst prompt {figures['psnr_worst_prompt_db']:.1f} dB{told_scores(figures)}"
    )


if __name__ == "__main__":
    main()
