"""What the user sees while it runs, on standard error so that standard output carries results alone."""

from __future__ import annotations

from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# More columns than any table needs.
_WIDEST = 10_000


def printable(text: object) -> str:
    """Text without control characters but line ends: what a terminal would obey, or shows in another order."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in str(text))


class PlainConsole(Console):
    """A terminal for text that may come from anyone, as from a database: shown as it is, no markup and no control."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """See `rich.console.Console.render_str`, which everything that is printed goes through."""
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """See `rich.console.Console.print`. Without a terminal a table is as wide as it likes: a file has no width."""
        before = self.width
        if not self.is_terminal:
            free = self.options.update(max_width=_WIDEST)
            tables = [one for one in objects if isinstance(one, Table)]
            self.width = max([before, *(self.measure(one, options=free).maximum for one in tables)])
        try:
            super().print(*objects, **options)
        finally:
            self.width = before


class Narrator:
    """A progress bar with stage, count, best so far, elapsed and remaining time, and one line per finished piece.

    Without a terminal there is no bar; the lines of a stage that has a best so far say the same.
    """

    def __init__(self) -> None:
        self.console = PlainConsole(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[best]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, best="", visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """Starts a stage of `total` pieces, `done` of which are finished already."""
        self.say(f"{name}: {total}" + (f", of which {done} are done" if done else ""))
        self._progress.reset(self._task, description=name, total=total, completed=done, best="", visible=True)

    def advance(self, line: str, best: str = "") -> None:
        """Counts one piece of the stage as finished."""
        self._progress.update(self._task, advance=1, best=best)
        self.say(f"{line} ({self._standing(best)})" if best and not self.console.is_terminal else line)

    def reached(self, done: int, total: int) -> None:
        """Moves the bar to `done` pieces, whoever finished them, of what are now expected to be `total`."""
        self._progress.update(self._task, completed=done, total=total)

    def _standing(self, best: str) -> str:
        task = self._progress.tasks[0]
        left = "" if task.time_remaining is None else f", about {timedelta(seconds=round(task.time_remaining))} left"
        return f"{task.completed:g} of {task.total or 0:g}, {best}{left}"

    def say(self, line: str) -> None:
        """Prints one line above the bar; the text is shown as it is, brackets included."""
        self._progress.console.print(Text(printable(line)), soft_wrap=True)
