"""The page in a real browser: open, filter, click a point, watch its clips, take its profile into the runtime."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scope_runtime import Profile
from studies.browser import CHROMIUM, chromium, dashboard
from tests.made import Made

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="chromium is not installed: apt-get install chromium")

POINT = ".js-plotly-plot .scatterlayer path.point"


@pytest.fixture(scope="module")
def page(made: Made) -> Iterator[Any]:
    with dashboard(made.url, made.folder) as address, chromium(viewport={"width": 1280, "height": 1200}) as opened:
        opened.set_default_timeout(120_000)
        opened.foreign = []
        opened.on("request", lambda r: opened.foreign.append(r.url) if not _is_local(r.url) else None)
        opened.goto(f"{address}/?study=made")
        opened.wait_for_selector(POINT)
        yield opened


def _is_local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def _click_another_point(page: Any, best: int) -> int:
    """Clicks points of the front until another trial than the best is selected; returns its number."""
    points = page.locator(POINT)
    for index in range(points.count()):
        box = points.nth(index).bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(300)
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(1500)
        found = re.search(r"trial=(\d+)", page.url)
        if found and int(found.group(1)) != best:
            return int(found.group(1))
    pytest.fail("no click selected a point")


def test_a_click_selects_a_point_and_the_address_shares_it(page: Any, made: Made) -> None:
    number = _click_another_point(page, made.best)
    page.get_by_text(f"Trial {number} (selected)").wait_for()
    page.reload()
    page.get_by_text(f"Trial {number} (selected)").wait_for()


def test_a_floor_filters(page: Any, made: Made) -> None:
    def feasible() -> int:
        told = page.locator("[data-testid=stMain] p", has_text="policies above the floors").inner_text()
        return int(re.search(r"of ([\d,]+) policies above", told).group(1).replace(",", ""))

    before = feasible()
    page.get_by_role("slider").first.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.wait_for_url(re.compile("floor=37"))
    page.wait_for_function(
        "before => !document.querySelector('[data-testid=stMain]').innerText.includes(`of ${before} policies above`)",
        arg=str(before),
    )
    assert feasible() < before


def test_the_clips_play_and_the_profile_goes_into_the_runtime(page: Any, made: Made, tmp_path: Path) -> None:
    page.goto(re.sub(r"\?.*", f"?study=made&view=Policy&trial={made.best}", page.url))
    page.wait_for_selector("video")
    page.wait_for_function("() => { const v = document.querySelector('video'); return v.readyState >= 2 && !v.error; }")
    page.evaluate("document.querySelector('video').play()")
    page.wait_for_function("() => document.querySelector('video').currentTime > 0.05")
    assert page.evaluate("document.querySelector('video').duration") == pytest.approx(6 / 24, abs=0.1)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download made.json").click()
    download.value.save_as(tmp_path / "made.json")
    profile = Profile.load(tmp_path / "made.json")
    assert profile.policy.to_dict() == made.data.results[made.best].policy


def test_nothing_is_fetched_from_elsewhere(page: Any) -> None:
    assert page.foreign == []
