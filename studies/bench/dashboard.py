"""How quickly the dashboard answers on a big study, measured in a real browser."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from calibrate.errors import CalibrateError
from calibrate.store import Storage
from studies.bench.synthetic_study import write_study
from studies.browser import CHROMIUM, chromium, dashboard

_PATIENCE_MILLISECONDS = 120_000
_POINT = ".js-plotly-plot .scatterlayer path.point"
_SELECTED = "[data-testid=stMain] h5"
# Trials whose generations are recorded too: what a click shows; the other trials have their results alone.
_WITH_GENERATIONS = 50


def measure(trials: int, repeats: int) -> dict[str, Any]:
    """Seconds to the first drawn chart in a fresh browser, and from a click on a point to its figures.

    Args:
        trials: Of the made-up study.
        repeats: Clicks; their median is reported.

    Raises:
        CalibrateError: If chromium is not installed.
    """
    if not CHROMIUM.exists():
        raise CalibrateError("The benchmark needs a browser: apt-get install chromium.")
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/big.db"
        storage = Storage(url)
        write_study(storage, "big", trials, generations=_WITH_GENERATIONS)
        storage.close()
        with dashboard(url, Path(folder)) as address, chromium(viewport={"width": 1280, "height": 1000}) as page:
            page.set_default_timeout(_PATIENCE_MILLISECONDS)
            start = time.perf_counter()
            page.goto(address)
            page.wait_for_selector(_POINT)
            first_paint = time.perf_counter() - start
            page.wait_for_timeout(2000)
            clicks = [_click(page, number) for number in range(repeats)]
    return {"first_paint_s": round(first_paint, 2), "click_s": round(statistics.median(clicks), 2), "trials": trials}


def _click(page: Any, number: int) -> float:
    """Clicks a point that is not selected and waits until the page says that it is."""
    points = page.locator(_POINT)
    before = page.locator(_SELECTED).inner_text()
    box = points.nth(1 + number % (points.count() - 2)).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.wait_for_timeout(400)
    start = time.perf_counter()
    page.mouse.click(x, y)
    page.wait_for_function(
        "([selector, before]) => document.querySelector(selector)?.innerText !== before", arg=[_SELECTED, before]
    )
    seconds = time.perf_counter() - start
    page.wait_for_timeout(1500)
    return seconds
