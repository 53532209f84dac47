"""Makes the pictures of the dashboard in docs/images from a finished study: `python -m studies.screenshots`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from studies.browser import chromium, dashboard

_SETTLE_MILLISECONDS = 2500
_PATIENCE_MILLISECONDS = 90_000

# Picture name, address, theme, width and height.
_PICTURES = (
    ("dashboard-front", "", "light", 1280, 1080),
    ("dashboard-front-dark", "", "dark", 1920, 980),
    ("dashboard-policy", "?view=Policy", "light", 1920, 2300),
    ("dashboard-policy-dark", "?view=Policy", "dark", 1280, 2300),
    ("dashboard-insight", "?view=Insight", "light", 1280, 1900),
    ("dashboard-insight-dark", "?view=Insight", "dark", 1920, 1850),
    ("dashboard-studies", "?view=Studies", "light", 1280, 900),
)


def main(
    storage: Annotated[str, typer.Option(help="URL of the database.")] = "sqlite:///runs/reference.db",
    output: Annotated[Path, typer.Option(help="Where the pictures go.")] = Path("docs/images"),
    only: Annotated[str, typer.Option(help="Only pictures whose name holds this.")] = "",
) -> None:
    """Makes the pictures."""
    output.mkdir(parents=True, exist_ok=True)
    with dashboard(storage, Path.cwd()) as address:
        for name, query, theme, width, height in _PICTURES:
            if only in name:
                with chromium(viewport={"width": width, "height": height}, color_scheme=theme) as page:
                    page.goto(f"{address}/{query}")
                    settle(page)
                    page.screenshot(path=str(output / f"{name}.png"))
                print(output / f"{name}.png")


def settle(page: Any) -> None:
    """Waits until the page has drawn its charts and stopped moving."""
    drawn = "[...document.querySelectorAll('.js-plotly-plot')].some(e => getComputedStyle(e).visibility === 'visible')"
    still = "!document.querySelector('[data-testid=stStatusWidget], [data-stale=true]')"
    # Waiting for a selector was seen to miss that a chart had become visible, so this asks every now and then.
    page.wait_for_function(f"() => {drawn} && {still}", timeout=_PATIENCE_MILLISECONDS, polling=200)
    page.wait_for_timeout(_SETTLE_MILLISECONDS)


if __name__ == "__main__":
    typer.run(main)
