"""Which files the page may show: clips in a cache that its user chose, wherever a database says that they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import dashboard
from calibrate.measure.clips import ClipShelf
from calibrate.serve import CACHES_VARIABLE, STORAGE_VARIABLE
from calibrate.store import Generation, Storage, browse
from calibrate.study.study_file import Study
from dashboard import cache
from dashboard.clips import clip_of, frame, frame_count
from dashboard.page import POLICY
from studies.bench.synthetic_study import write_study
from tests.made import Made


@pytest.fixture
def row(made: Made, read_only: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generation:
    """A measurement whose clip lies in the folder `elsewhere`, too, of the working directory."""
    found, _ = browse.measurements(read_only, made.data.record.id, made.data.results[made.best].policy)[0]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made.folder / "runs/made", tmp_path / "elsewhere/made")
    return found


def _study(made: Made, folder: Path | str) -> Study:
    return made.data.study.model_copy(update={"cache": str(folder)})


def test_a_record_counts_within_the_folders_of_the_users_choice(row: Generation, made: Made, tmp_path: Path) -> None:
    runs = [Path("runs")]
    for name in (tmp_path / "elsewhere/made", "elsewhere/made", "runs/../elsewhere/made", "/", ".", "a\0b", "x" * 5000):
        assert clip_of(row, _study(made, name), runs) is None
    assert clip_of(row, _study(made, "elsewhere/made"), [*runs, Path("elsewhere")]) is not None
    assert clip_of(row, _study(made, tmp_path / "elsewhere/made"), [tmp_path / "elsewhere/made"]) is not None


def test_links_lead_nowhere_else(row: Generation, made: Made, tmp_path: Path) -> None:
    study = _study(made, "runs/made")
    clip = ClipShelf(study.clip_folder, 1.0).path(row.policy or {}, row.prompt, row.seed)
    secret = tmp_path / "elsewhere" / "secret.mp4"
    secret.write_bytes(b"secret")
    clip.parent.mkdir(parents=True)
    clip.symlink_to(secret)
    assert clip.is_file()
    assert clip_of(row, study, [Path("runs")]) is None
    clip.unlink()
    clip.symlink_to(clip)
    assert clip_of(row, study, [Path("runs")]) is None
    shutil.rmtree("runs/made")
    Path("runs/made").symlink_to(tmp_path / "elsewhere/made")
    assert clip_of(row, study, [Path("runs")]) is None
    shutil.rmtree("runs", ignore_errors=True)
    Path("runs").unlink(missing_ok=True)
    shutil.copytree("elsewhere", "runs")
    assert clip_of(row, study, [Path("runs")]) is not None


def test_a_playlist_under_a_clips_name_is_not_followed(tmp_path: Path) -> None:
    playlist = tmp_path / "clip.mp4"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/other.ts\n")
    with pytest.raises((OSError, ValueError)):
        frame_count(playlist)


def test_the_folders_are_those_beside_the_database_and_the_given_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(f"sqlite:///{tmp_path}/some.db")
    monkeypatch.delenv(CACHES_VARIABLE, raising=False)
    assert cache.clip_folders(storage) == [tmp_path, Path("runs")]
    monkeypatch.setenv(CACHES_VARIABLE, "/a:/b c")
    assert cache.clip_folders(storage)[2:] == [Path("/a"), Path("/b c")]
    storage.close()


def test_the_page_says_how_clips_of_another_folder_are_shown(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that names a folder which happens to hold clips of the right names."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(made.folder / "runs/made", elsewhere)
    work = tmp_path / "work"
    (work / "db").mkdir(parents=True)
    url = f"sqlite:///{work}/db/made.db"
    storage = Storage(url)
    write_study(storage, "made", 40, estimates=True)
    with storage.sessions.begin() as session:
        record = browse.study_record(storage, "made")
        session.merge(record).yaml_text = f"{record.yaml_text}cache: {elsewhere}\n"
    storage.close()
    monkeypatch.chdir(work)
    monkeypatch.setenv(STORAGE_VARIABLE, url)
    monkeypatch.delenv(CACHES_VARIABLE, raising=False)
    page = AppTest.from_file(str(Path(dashboard.__file__).with_name("app.py")), default_timeout=120)
    page.session_state["view"] = POLICY
    page.query_params["trial"] = str(made.best)
    page.run()
    assert not page.exception
    assert "started with --cache" in page.info[0].value
    assert not page.get("video")
    monkeypatch.setenv(CACHES_VARIABLE, str(elsewhere))
    page.run()
    assert not page.exception
    assert not page.info
    assert page.get("video")


def test_single_frames_of_a_clip_can_be_seen(made: Made) -> None:
    (path, *_) = sorted((made.folder / made.data.study.clip_folder).glob("*.mp4"))
    assert frame_count(path) == 6
    first, last = frame(path, 0), frame(path, 5)
    assert first.shape == last.shape
    assert (first != last).any()
