"""The page by Streamlit's own test driver: every view draws, and what is missing is said in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from streamlit.testing.v1 import AppTest

import dashboard
from calibrate.display.data import load_study
from calibrate.display.wording import KINDS, plain
from calibrate.serve import STORAGE_VARIABLE
from calibrate.store import Storage
from dashboard.__main__ import _draw_first_chart
from dashboard.page import INSIGHT, POLICY, STUDIES, TRADE_OFF
from studies.bench.synthetic_study import write_study
from tests.made import Made

APP = Path(dashboard.__file__).with_name("app.py")


@pytest.fixture
def page(made: Made, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.chdir(made.folder)
    monkeypatch.setenv(STORAGE_VARIABLE, made.url)
    return AppTest.from_file(str(APP), default_timeout=120)


def _show(page: AppTest, view: str, study: str = "made") -> str:
    page.session_state["view"] = view
    page.session_state["study"] = study
    page.run()
    assert not page.exception
    return "\n".join(element.value for kind in ("markdown", "caption", "info", "error") for element in page.get(kind))


def test_the_trade_off_starts_with_what_is_gained(page: AppTest, made: Made) -> None:
    shown = _show(page, TRADE_OFF)
    assert f"Trial {made.best}: the fastest above the floors" in shown
    assert page.metric[0].value == f"{made.data.results[made.best].speedup_evaluations:.2f}x"


def test_a_floor_moves_the_best_point(page: AppTest, made: Made) -> None:
    _show(page, TRADE_OFF)
    page.slider(key="floor").set_value(45.0).run()
    assert not page.exception
    best = max(
        (r for r in made.data.results.values() if r.figures["psnr_db"] >= 46), key=lambda r: r.speedup_evaluations
    )
    assert page.metric[0].value == f"{best.speedup_evaluations:.2f}x"
    page.slider(key="floor").set_value(60.0).run()
    assert "lower one" in page.markdown[1].value


def test_a_floor_on_a_score_has_a_slider_and_the_score_an_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'scored.db'}"
    storage = Storage(url)
    write_study(storage, "scored", 20, scores=True)
    write_study(storage, "plain", 5)
    data = load_study(storage, "scored")
    storage.close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(STORAGE_VARIABLE, url)
    page = AppTest.from_file(str(APP), default_timeout=120)
    _show(page, TRADE_OFF, "scored")
    page.slider(key="score_caption_at_least").set_value(0.42).run()
    page.selectbox(key="quality").set_value("score.caption.mean").run()
    assert not page.exception
    holding = [r for r in data.results.values() if r.feasible(data.study.floors)]
    best = max((r for r in holding if r.figures["score.caption.mean"] >= 0.42), key=lambda r: r.speedup_evaluations)
    assert best.speedup_evaluations < max(r.speedup_evaluations for r in holding)
    assert page.metric[0].value == f"{best.speedup_evaluations:.2f}x"
    # Another study has no such score; its page draws all the same.
    page.selectbox(key="study").set_value("plain").run()
    assert not page.exception
    assert _show(page, STUDIES, "scored")


def test_a_selected_trial_is_shown_with_its_modes_and_its_profile(page: AppTest, made: Made) -> None:
    page.query_params["trial"] = str(made.best)
    shown = _show(page, POLICY)
    assert "What each block did" in shown
    assert "Grey is what stock computes" in shown
    assert "the error that was to be expected" in shown
    assert "No clip of this generation" not in shown
    assert 'Profile.load("made.json")' in page.code[0].value
    other = next(trial for trial in made.data.results if trial != made.best)
    page.query_params["trial"] = str(other)
    page.run()
    assert f"scope-calibrate export made.yaml --trial {other}" in page.code[0].value


@pytest.mark.parametrize("number", ["999", "-1", "x", ""])
def test_a_trial_that_is_not_there_falls_back_to_the_best(page: AppTest, made: Made, number: str) -> None:
    page.query_params["trial"] = number
    assert f"Trial {made.best}" in _show(page, TRADE_OFF)


def test_insight_and_studies_draw(page: AppTest) -> None:
    assert "Rank correlation" in _show(page, INSIGHT)
    assert "Only the best measured trade-offs" in _show(page, STUDIES)
    assert page.dataframe[0].value["study"].tolist() == ["other", "made"]


def test_what_can_be_promised_stands_beside_the_front(promised: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(promised.folder)
    monkeypatch.setenv(STORAGE_VARIABLE, promised.url)
    page = AppTest.from_file(str(APP), default_timeout=120)
    shown = _show(page, TRADE_OFF, "promised")
    assert "On 5 guarantee prompts, which no choice has seen" in shown
    assert "#### What can be promised" in shown
    assert f"**Trial {promised.best} passed: 3.00x.**" in shown
    table = next(frame.value for frame in page.dataframe if "every prompt's PSNR" in frame.value)
    assert table["0.6 of prompts"].tolist()[1] == f"3.00x (trial {promised.best})"


@pytest.fixture
def mixed_page(mixed: Made, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.chdir(mixed.folder)
    monkeypatch.setenv(STORAGE_VARIABLE, mixed.url)
    return AppTest.from_file(str(APP), default_timeout=120)


def test_thresholds_and_learned_weights_are_told_apart(mixed_page: AppTest, mixed: Made) -> None:
    for trial in (_of(mixed, "thresholds"), _of(mixed, "learned")):
        mixed_page.query_params["trial"] = str(trial)
        kind = KINDS[mixed.data.results[trial].kind]
        shown = _show(mixed_page, TRADE_OFF, "mixed")
        assert f"Trial {trial}, {kind}" in shown
        assert ("Follows a frozen plan" in shown) == (kind == "learned weights")
        assert "triangles are plans with learned weights" in shown
        table = mixed_page.dataframe[0].value
        assert dict(zip(table["trial"], table["kind"], strict=True)) == {
            number: KINDS[mixed.data.results[number].kind] for number in table["trial"]
        }
        assert set(table["kind"]) == set(KINDS.values())
        shown = _show(mixed_page, POLICY, "mixed")
        assert f"Trial {trial}  :gray[· {plain(kind)}" in shown
        assert ("The learned weights" in shown) == (kind == "learned weights")


def test_where_there_is_one_kind_it_is_not_told(page: AppTest) -> None:
    for view in (TRADE_OFF, POLICY, INSIGHT):
        assert "learned" not in _show(page, view)


def test_the_plan_and_the_weights_of_a_learned_policy_are_drawn(mixed_page: AppTest, mixed: Made) -> None:
    trial = _of(mixed, "learned")
    policy = mixed.data.results[trial].policy
    mixed_page.query_params["trial"] = str(trial)
    shown = _show(mixed_page, POLICY, "mixed")
    letters = "".join(policy["plan"])
    assert f"{letters.count('R')} of {letters.count('R') + letters.count('P')} block updates are computed" in shown
    told = "a pass at its clean level" if policy.get("captures", "clean") == "clean" else "no pass is made for them"
    assert told in shown
    assert "what the gap before would still have handed over" in shown
    assert "fitted on 0 fit prompts" in shown
    assert "20 steps, guidance 4" in shown


def test_parameters_are_shown_of_one_kind_at_a_time(mixed_page: AppTest) -> None:
    shown = _show(mixed_page, INSIGHT, "mixed")
    assert "of the 20 policies with **thresholds**" in shown
    assert "warmup" in mixed_page.selectbox(key="parameter").options
    mixed_page.button_group(key="kind").set_value("learned")
    shown = _show(mixed_page, INSIGHT, "mixed")
    assert "of the 20 policies with **learned weights**" in shown
    options = mixed_page.selectbox(key="parameter").options
    assert "extra_evaluations" in options
    assert "warmup" not in options


def test_weights_that_cannot_be_read_are_a_sentence(
    mixed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = _of(mixed, "learned")
    storage = Storage(f"sqlite:///{tmp_path / 'bad.db'}")
    write_study(storage, "mixed", 20, learned=20)
    with storage.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE trial_user_attributes SET value_json = json_set(value_json, '$.policy.gap_weights.depth', "
                "'<img src=x>') WHERE key = 'result' AND json_extract(value_json, '$.policy.gap_weights') IS NOT NULL"
            )
        )
    storage.close()
    monkeypatch.setenv(STORAGE_VARIABLE, f"sqlite:///{tmp_path / 'bad.db'}")
    page = AppTest.from_file(str(APP), default_timeout=120)
    page.query_params["trial"] = str(trial)
    for view in (TRADE_OFF, POLICY):
        shown = _show(page, view, "mixed")
        assert "which cannot be read" in shown
        assert "<img" not in shown.replace("\\<img", "")


def _of(made: Made, kind: str) -> int:
    return next(trial for trial, result in made.data.results.items() if result.kind == kind)


def test_a_study_that_is_not_there_is_a_sentence_and_another_is_shown(page: AppTest, made: Made) -> None:
    page.query_params["study"] = "gone"
    page.query_params["trial"] = str(made.best)
    page.run()
    assert not page.exception
    assert "'gone' is not in this database (any more)" in page.warning[0].value
    assert "trial" not in page.query_params
    page.run()
    assert page.warning  # until another study is chosen
    page.selectbox(key="study").set_value("made").run()
    assert not page.warning


def _opened(url: str, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setenv(STORAGE_VARIABLE, url)
    page = AppTest.from_file(str(APP), default_timeout=120).run()
    assert not page.exception
    return page


def test_an_empty_database_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    Storage(url).close()
    assert "holds no studies yet" in _opened(url, monkeypatch).info[0].value


def test_a_missing_database_is_a_sentence_and_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = _opened(f"sqlite:///{tmp_path / 'none.db'}", monkeypatch)
    assert "does not exist yet" in page.error[0].value
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "studies", [None, [], [("young", 0)], [("made", 12)]], ids=["missing", "empty", "young", "made"]
)
def test_what_is_drawn_before_the_first_visitor_stops_at_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, studies: list[tuple[str, int]] | None
) -> None:
    url = f"sqlite:///{tmp_path / 'some.db'}"
    if studies is not None:
        storage = Storage(url)
        for name, trials in studies:
            write_study(storage, name, trials)
        storage.close()
    monkeypatch.setenv(STORAGE_VARIABLE, url)
    _draw_first_chart()


def test_an_unreachable_database_is_a_sentence_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    page = _opened("postgresql+psycopg://anna:hunter2@127.0.0.1:1/scope", monkeypatch)
    assert "cannot be reached" in page.error[0].value
    assert "hunter2" not in page.error[0].value


def test_a_study_without_trials_and_one_that_goes_away_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'young.db'}"
    storage = Storage(url)
    write_study(storage, "young", 0)
    page = _opened(url, monkeypatch)
    assert "first candidates are being generated" in page.info[0].value
    with create_engine(url).begin() as connection:
        connection.execute(text("DELETE FROM scope_generation"))
        connection.execute(text("DELETE FROM scope_study"))
    assert "holds no studies yet" in page.run().info[0].value
    storage.close()
    (tmp_path / "young.db").unlink()
    assert "no longer there" in page.run().error[0].value
