"""The page on architecture names the rooms that there are."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_lists_the_rooms_in_the_order_that_imports_are_held_to() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract.get("containers") == ["calibrate"])
    names = [name for layer in layers for name in re.findall(r"\w+", layer)]
    rooms = [name for name in names if not (ROOT / "calibrate" / f"{name}.py").is_file()]
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert re.findall(r"^\| `(\w+)/` \|", page, re.M) == rooms
    assert all(f"`{name}`" in page for name in names if name not in rooms)
