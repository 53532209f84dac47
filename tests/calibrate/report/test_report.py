"""The report: one page that holds all that it shows, in a real browser too, and a model card of the same words."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from calibrate import overview
from calibrate.display.front import study_front
from calibrate.display.measures import QUALITY, SPEED
from calibrate.display.theme import DARK
from calibrate.errors import CalibrateError
from calibrate.report.card import card
from calibrate.report.clips import Clip, fitting
from calibrate.report.content import Content, of_profile, of_study
from calibrate.report.page import MOST_BYTES, page
from calibrate.report.sections import usage
from calibrate.store import Storage
from calibrate.study.outputs import REPORT_MARK, companions
from scope_runtime import Profile
from studies.browser import CHROMIUM, chromium
from tests.dashboard.hostile import BLOCKS, FAR, MARKUP
from tests.made import Made, profile_of

GUARANTEE = {
    "statement": "Nine in ten.", "assumption": "Drawn alike.", "share": 0.9, "confidence": 0.9, "n": 22, "misses": 1,
    "floors": {}, "cases": [{"prompt": "a", "seed": 1, "psnr_db": 31.0, "missed": []}],
    "means": {"psnr_db": {"mean": 40.0, "bound": 38.0, "floor": 35.0}},
}  # fmt: skip


def _content(made: Made, profile: Profile | None = None) -> Content:
    """The made study as somebody who works in its folder has it."""
    storage, before = Storage(made.url, read_only=True), Path.cwd()
    os.chdir(made.folder)
    try:
        study = made.data.study
        content = of_study(storage, study, Path("profiles/made.json"), profile)
    finally:
        os.chdir(before)
        storage.close()
    return replace(content, clips=[replace(clip, path=made.folder / clip.path) for clip in content.clips])


def _figures(text: str) -> Any:
    return json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.S)[1])


@pytest.fixture(scope="module")
def content(made: Made) -> Content:
    return _content(made)


@pytest.fixture(scope="module")
def written(content: Content) -> str:
    return page(content).decode()


def test_the_page_holds_what_the_dashboard_draws(content: Content, made: Made, written: str) -> None:
    figures = _figures(written)
    assert set(figures) == {"front", "modes", "blocks"}
    drawn = study_front(
        made.data, made.data.study.floors, SPEED["speedup_evaluations"], QUALITY["psnr_db"], DARK, selected=None,
        best=made.best,
    )  # fmt: skip
    assert figures["front"]["dark"] == json.loads(drawn.to_json())
    assert "On 1 held-out prompt, which no choice has seen, this model makes its videos with" in written
    assert "<strong>2.50x fewer block evaluations</strong> at <strong>38.5 dB</strong>" in written
    assert "no promise was tested" in written
    assert written.count('src="data:video/mp4;base64,') == len(made.data.study.search_cases) == len(content.clips)
    assert REPORT_MARK in written[:1024]
    assert len(written) < MOST_BYTES


def test_a_promise_stands_at_the_top_and_its_table_below(promised: Made, made: Made) -> None:
    profile = profile_of(made.data.results[made.best].policy)
    trial = {"trial": made.best, "rule": "fastest"}
    kept = replace(profile, evidence={**profile.evidence, "guarantee": GUARANTEE}, provenance=trial)
    shown = page(_content(made, kept)).decode()
    assert "<blockquote>Nine in ten.</blockquote>" in shown
    assert "Their mean PSNR is 40.0 dB, that of all such prompts at least 38.0 dB." in shown
    assert "Guarantee prompts" in shown
    searched = page(_content(promised)).decode()  # nothing was exported
    assert f"Trial {promised.best} passed: 3.00x." in searched
    assert "takes 22 cases" in searched
    assert "On 5 guarantee prompts, which no choice has seen" in searched
    assert "figures of search prompts flatter" in searched


def test_a_profile_alone_is_reported_as_far_as_it_says(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    profile_of(made.data.results[made.best].policy).save(path)
    shown = page(of_profile(path)).decode()
    assert "own.json" in usage(of_profile(path))
    assert "A profile alone holds neither the other policies" in shown
    assert "No clip of this policy was found" in shown
    assert _figures(shown) == {}
    assert "Plotly.newPlot" not in shown  # what draws figures is left out where there are none
    companions(path).clip.write_bytes(b"clip")
    profile = Profile.load(path)
    worst = {"prompt": "a fox", "seed": 7, "psnr_db": 37.0}
    replace(profile, evidence={**profile.evidence, "worst_prompt": worst}).save(path)
    (clip,) = of_profile(path).clips
    assert clip.told == "a fox (seed 7, the worst held-out prompt, 37.0 dB)"
    assert "data:video/mp4;base64,Y2xpcA==" in page(of_profile(path)).decode()


def test_the_largest_clips_are_left_out_and_named(content: Content, tmp_path: Path) -> None:
    clips = []
    for name, size in (("small", 10), ("huge", 16_000_000), ("other", 20)):
        (tmp_path / name).write_bytes(bytes(size))
        clips.append(Clip((name, 0), name, tmp_path / name, size))
    assert fitting(clips, 25) == ([clips[0]], [clips[1], clips[2]])
    shown = page(replace(content, clips=clips))
    assert len(shown) <= MOST_BYTES
    assert b"the clip of huge." in shown
    assert shown.count(b"data:video/mp4") == 2


def test_the_card_says_the_same_and_links_what_lies_beside_it(content: Content, tmp_path: Path) -> None:
    plot = companions(content.path).plot
    (tmp_path / plot.name).write_bytes(b"")
    text = card(content, tmp_path).decode()
    assert text.startswith("---\ntags:")
    assert REPORT_MARK in text[:1024]
    assert "**2.50x fewer block evaluations**" in text
    assert f"![The front]({plot.name})" in text
    assert "made.mp4" not in text
    assert "| PSNR, mean (dB) |  |  | 38.5 |" in text
    assert "not\\: `scope-calibrate verify` measures" in text
    assert usage(content) in text


def test_a_report_takes_the_place_of_reports_alone(made: Made, tmp_path: Path) -> None:
    profile = tmp_path / "own.json"
    profile_of(made.data.results[made.best].policy).save(profile)
    written = overview.report(profile, None, markdown=False)
    assert (written, written.read_bytes()[:15]) == (tmp_path / "own.html", b"<!doctype html>")
    assert overview.report(profile, None, markdown=False) == written
    assert overview.report(profile, None, markdown=True).name == "README.md"
    before = profile.read_bytes()
    with pytest.raises(CalibrateError, match="is no report; choose another path"):
        overview.report(profile, profile, markdown=False)
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(CalibrateError, match="README.md is there already and is no report"):
        overview.report(profile, None, markdown=True)
    with pytest.raises(CalibrateError, match="is a folder"):
        overview.report(profile, tmp_path, markdown=False)
    assert profile.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "own.html", "own.json"]


def _hostile(made: Made, folder: Path) -> Content:
    profile = profile_of(made.data.results[made.best].policy)
    text = MARKUP + BLOCKS + "</script></style>"
    case = {"prompt": text, "seed": 1, "psnr_db": text, text: text}
    evidence = {
        **profile.evidence, "cases": [case], "worst_prompt": case, "missed_floors": {text: 1.0}, "scores": {text: 1.0},
        "hardware": {text: text}, "versions": {text: text}, "intervals": {"psnr_db": text},
        "exact": {"max_abs_diff": 1, "stock_rounding": text},
        "guarantee": {**GUARANTEE, "statement": text, "assumption": text, "cases": [case]},
    }  # fmt: skip
    provenance = {"study": text, "trial": text, "rule": text, "verify": {"model_spec": {"family": text}}}
    path = folder / f"{MARKUP.replace('/', '')[:80]}.json"
    replace(profile, evidence=evidence, provenance=provenance).save(path)
    return of_profile(path)


def test_text_of_others_is_text(made: Made, tmp_path: Path) -> None:
    content = _hostile(made, tmp_path)
    shown = page(content).decode()
    assert FAR in shown
    assert re.findall(r"<(?:img|a|script)[^>]*far\.example", shown) == []
    assert shown.count("</script>") == 2
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(card(content, tmp_path).decode())
    assert "far" in rendered
    assert re.findall(r"<img|<script|href=\"[^\"]*:", rendered) == []
    assert re.findall(r"<(?:del|em|h1|h3|ul)>(?:s|e|h|item)<", rendered) == []


def _until(page: Any, condition: str) -> None:
    """Waits for a condition; the page's own rules forbid what Playwright does for that."""
    deadline = time.monotonic() + 120
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(100)


@pytest.mark.skipif(not CHROMIUM.exists(), reason="chromium is not installed: apt-get install chromium")
class TestInABrowser:
    @pytest.fixture(scope="class")
    def opened(self, written: str, made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        folder = tmp_path_factory.mktemp("report")
        (folder / "report.html").write_text(written)
        (folder / "hostile.html").write_bytes(page(_hostile(made, folder)))
        with chromium(viewport={"width": 1280, "height": 1000}) as opened:
            opened.folder, opened.asked, opened.said = folder, [], []
            opened.on("request", lambda request: opened.asked.append(request.url))
            opened.on("console", lambda message: opened.said.append(message.text))
            opened.on("pageerror", lambda error: opened.said.append(str(error)))
            yield opened

    def test_it_draws_plays_and_fetches_nothing(self, opened: Any) -> None:
        opened.goto(f"file://{opened.folder}/report.html")
        _until(opened, "document.querySelectorAll('.js-plotly-plot .main-svg').length >= 6")
        _until(opened, "[...document.querySelectorAll('video')].every(v => v.readyState >= 2 && !v.error)")
        opened.evaluate("document.querySelector('video').play()")
        _until(opened, "document.querySelector('video').currentTime > 0.05")
        assert opened.evaluate("document.documentElement.scrollWidth") <= 1280
        assert {url.partition(":")[0] for url in opened.asked} <= {"file", "data", "blob"}
        assert sum(url.startswith("file:") for url in opened.asked) == 1
        assert opened.said == []
        refused = opened.evaluate(
            """address => new Promise(done => {
                document.addEventListener('securitypolicyviolation', e => done(e.blockedURI));
                document.body.append(Object.assign(new Image(), {src: address}));
            })""",
            f"{FAR}/i.png",
        )
        assert refused.startswith(FAR)

    def test_markup_of_others_is_text(self, opened: Any) -> None:
        opened.goto(f"file://{opened.folder}/hostile.html")
        leading = opened.eval_on_selector_all(
            "main a, main img, iframe, script[src], link, form",
            "found => found.map(e => e.getAttribute('href') || '?')",
        )
        assert [found for found in leading if not found.startswith("#")] == []
        assert FAR in opened.inner_text("main")
