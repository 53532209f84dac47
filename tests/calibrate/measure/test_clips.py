"""Several studies keep their clips in one folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibrate.measure.clips import ClipShelf


def test_a_clip_that_another_process_drops_meanwhile_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = ClipShelf(tmp_path, 0.000015)
    shelf.keep({}, "a", 0, lambda: b"0123456789")
    listed = Path.glob

    def glob(folder: Path, pattern: str) -> list[Path]:
        return [folder / "dropped.mp4", *listed(folder, pattern)]

    monkeypatch.setattr(Path, "glob", glob)
    shelf.keep({}, "b", 0, lambda: b"0123456789")
    assert shelf.path({}, "b", 0).exists()
    assert not shelf.path({}, "a", 0).exists()


def test_clips_make_room_for_new_ones(tmp_path: Path) -> None:
    shelf = ClipShelf(tmp_path / "clips", 0.0025)
    for seed in range(4):
        shelf.keep({"warmup": 1}, "a", seed, lambda: bytes(1000))
    assert [shelf.path({"warmup": 1}, "a", seed).exists() for seed in range(4)] == [False, False, True, True]
    ClipShelf(tmp_path / "none", 0).keep({}, "a", 0, lambda: b"x")
    assert not (tmp_path / "none").exists()
