"""Text from a database and from an address is shown as text, by a server that foreign pages and names cannot reach."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from dashboard.page import INSIGHT, POLICY, STUDIES, TRADE_OFF, VIEWS
from studies.browser import CHROMIUM, chromium, dashboard
from studies.screenshots import settle
from tests.dashboard.hostile import FAR, MARKUP, NAME, write_hostile

# What would fetch something, or lead away.
LOADS = "img, a, script, iframe, video, source, object, embed, link, image, use, form"


# Trials with learned weights.
LEARNED = READ, UNREADABLE = 14, 15


@dataclass(frozen=True)
class Served:
    """A running dashboard.

    Attributes:
        folder: Where it runs.
        database: Its file.
        before: A digest of the file before it was looked at.
        address: Of the page.
    """

    folder: Path
    database: Path
    before: str
    address: str


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("hostile")
    url = write_hostile(folder)
    database = folder / "hostile.db"
    before = _digest(database)
    with dashboard(url, folder, "--allow-host", "lab.example") as address:
        yield Served(folder, database, before, address)


@pytest.fixture(scope="module")
def page(served: Served) -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip("chromium is not installed: apt-get install chromium")
    with chromium(viewport={"width": 1280, "height": 2000}, bypass_csp=True) as opened:
        opened.set_default_timeout(120_000)
        opened.foreign = []
        opened.on("request", lambda r: opened.foreign.append(r.url) if not r.url.startswith(_own(served)) else None)
        yield opened


def _own(served: Served) -> tuple[str, ...]:
    return (served.address, served.address.replace("http:", "ws:"), "data:", "blob:")


def _text(shown: str) -> str:
    return " ".join(shown.replace("\u2060", "").split())


def _assert_only_text(page: Any) -> None:
    """No element loads or leads anywhere foreign, and no foreign text was made into anything but text."""
    leading = page.eval_on_selector_all(
        LOADS, "found => found.flatMap(e => [...e.attributes].map(a => [e.tagName, a.name, a.value]))"
    )
    assert [found for found in leading if "far.example" in found[2] or found[2].startswith("mailto:")] == []
    assert page.locator(".katex, [data-testid=stMain] del, [data-testid=stMain] blockquote").count() == 0
    # Our own words are emphasised; theirs are not.
    emphasised = page.locator("strong, em, code, b, i, h1 *, h2 *").all_inner_texts()
    assert [found for found in emphasised if (found or "").strip() in ("b", "e", "k", "c", "l", "t", "i", "home")] == []
    assert page.foreign == []


@pytest.mark.parametrize(
    ("view", "trial"),
    [(STUDIES, 2), (INSIGHT, 2), *((view, trial) for view in (TRADE_OFF, POLICY) for trial in (2, 3, 4, *LEARNED))],
)
def test_a_database_of_markup_is_shown_as_text(page: Any, served: Served, view: str, trial: int) -> None:
    page.goto(f"{served.address}/?view={quote(view)}&study={quote(NAME)}&trial={trial}&compare={quote(NAME)}")
    if view == POLICY and trial in (4, *LEARNED):  # its recorded policy is not the one that was generated with
        page.get_by_text("no longer in the database").wait_for()
    if view != POLICY or trial not in (4, UNREADABLE):
        settle(page)
    _assert_only_text(page)
    shown = _text(page.inner_text("body"))
    assert "Something went wrong" not in shown
    if view == TRADE_OFF:
        assert _text(page.locator("h2").first.inner_text()) == _text(NAME)
        assert (_text(MARKUP) in shown.replace(_text(NAME), "")) == (trial == 3)  # why it was stopped
    if trial in LEARNED:
        assert ("which cannot be read" in shown) == (trial == UNREADABLE)
        assert ("The learned weights" in shown) == (trial == READ and view == POLICY)
        ticks = _text(" ".join(page.locator(".yaxislayer-above text").all_text_contents()))
        assert (view == POLICY and trial == READ) == (_text(MARKUP) in ticks)
    elif view == POLICY and trial != 4:
        assert "miss the floor " + _text(MARKUP) in shown


def test_hovering_shows_text(page: Any, served: Served) -> None:
    page.goto(f"{served.address}/?view=Trade-off&study={quote(NAME)}&trial=4")
    settle(page)
    points = page.locator(".js-plotly-plot .scatterlayer path.point")
    for index in range(points.count()):
        box = points.nth(index).bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(300)
        if "%{x}" in (shown := "".join(page.locator(".hoverlayer text").all_text_contents())):
            assert "indicator: " + MARKUP[:40] in shown or "captures: " + MARKUP[:40] in shown
            _assert_only_text(page)
            return
    pytest.fail("no point shows its indicator or its captures")


def test_an_address_of_markup_is_shown_as_text(page: Any, served: Served) -> None:
    asked = quote(MARKUP)
    for view in VIEWS:
        names = ("study", "trial", "quality", "speed", "floor", "parameter", "compare", "prompt")
        page.goto(f"{served.address}/?view={quote(view)}&" + "&".join(f"{name}={asked}" for name in names))
        page.get_by_text("is not in this database (any more)").wait_for()
        _assert_only_text(page)
        assert _text(f"The study '{MARKUP}' is not") in _text(page.inner_text("[data-testid=stSidebar]"))


def test_failures_are_shown_as_text(page: Any, served: Served) -> None:
    page.goto(f"{served.address}/?study=two")
    page.get_by_text("candidates failed").wait_for()
    _assert_only_text(page)
    assert _text(MARKUP) in _text(page.inner_text("[data-testid=stMain]"))


def test_the_browser_itself_would_fetch_nothing_from_elsewhere(page: Any, served: Served) -> None:
    """Should markup get through after all: an image, put into the page by hand, is not asked for."""
    opened = page.context.browser.new_page()
    opened.goto(served.address)
    refused = opened.evaluate(
        """address => new Promise(done => {
            document.addEventListener('securitypolicyviolation', e => done(e.blockedURI));
            document.body.append(Object.assign(new Image(), {src: address}));
        })""",
        f"{FAR}/i.png",
    )
    opened.close()
    assert refused.startswith(FAR)


def test_looking_writes_nothing(page: Any, served: Served) -> None:
    page.goto(served.address)
    settle(page)
    assert _digest(served.database) == served.before
    # SQLite keeps an index of its log beside a database that somebody reads.
    assert {path.name for path in served.folder.iterdir()} <= {
        "hostile.db", "hostile.db.lock", "hostile.db-shm", "hostile.db-wal",
    }  # fmt: skip


def _ask(served: Served, host: str | None, origin: str | None = None, *, websocket: bool = False) -> int:
    """The status of an answer to a request, or a websocket's opening, that says just this of itself."""
    port = urlsplit(served.address).port
    assert port is not None
    lines = [f"GET {'/_stcore/stream' if websocket else '/'} HTTP/1.1"]
    lines += [f"Host: {host.format(port=port)}"] if host is not None else []
    lines += [f"Origin: {origin.format(port=port)}"] if origin is not None else []
    if websocket:
        lines += ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
        lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol: streamlit"]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        found = re.match(rb"HTTP/1\.1 (\d+)", connection.recv(4096))
    assert found
    return int(found.group(1))


@pytest.mark.parametrize("websocket", [False, True], ids=["page", "websocket"])
@pytest.mark.parametrize(
    ("host", "origin", "answered"),
    [
        ("127.0.0.1:{port}", None, True),
        ("127.0.0.1:{port}", "http://127.0.0.1:{port}", True),
        ("localhost:{port}", "http://localhost:{port}", True),
        ("[::1]:{port}", "http://[::1]:{port}", True),
        ("LOCALHOST.:{port}", None, True),
        ("lab.example", "https://lab.example", True),
        ("127.0.0.1:{port}", "https://lab.example", True),  # a proxy with a Host of its own
        ("evil.example", None, False),
        ("evil.example:{port}", "http://evil.example:{port}", False),
        ("127.0.0.1.evil.example", None, False),
        ("lab.example.evil.example", None, False),
        ("evil.example@127.0.0.1", None, False),
        ("127.0.0.1:{port}/", None, False),
        ("", None, False),
        ("127.0.0.1:{port}", "http://evil.example", False),
        ("127.0.0.1:{port}", "http://localhost:1", False),  # another server of this machine
        ("127.0.0.1:{port}", "http://lab.example.evil.example", False),
        ("127.0.0.1:{port}", "null", False),
    ],
)
def test_only_a_page_of_its_own_under_a_name_of_its_own_is_answered(
    served: Served, host: str, origin: str | None, answered: bool, websocket: bool
) -> None:
    status = _ask(served, host, origin, websocket=websocket)
    assert status == ((101 if websocket else 200) if answered else status)
    assert answered or status in (400, 403)


def test_one_host_it_is(served: Served) -> None:
    assert _ask(served, None) == 400
    assert _ask(served, "127.0.0.1:{port}\r\nHost: evil.example") in (400, 403)
