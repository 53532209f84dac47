from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy.stats import binom

from calibrate.export.guarantee import GuaranteeTests
from calibrate.export.recheck import against_promise
from scope_runtime import Profile
from tests.calibrate.conftest import TINY_STUDY, Workplace

CASES = [
    {"prompt": f"a {what} moving {way}", "seed": 9}
    for what, way in (("red", "up"), ("blue", "down"), ("green", "up"), ("blue square", "left"), ("red circle", "up"))
]
# Of five cases one may miss for this.
WISH = {"share": 0.5, "confidence": 0.75, "most_policies": 2}
GUARANTEED: dict[str, Any] = {
    "guarantee": WISH,
    "guarantee_cases": CASES,
    "held_out_cases": TINY_STUDY["held_out_cases"][:1],
    "budget": {"trials": 2},
    "timing": {"max_repeats": 0},
    "floors": {"psnr_db": 20.0, "psnr_worst_prompt_db": 28.0},
}


@pytest.fixture(scope="module")
def guaranteed(make_workplace: Callable[..., Workplace]) -> Workplace:
    """A study that was stopped while it tested its first policy. Tests must not change it."""
    workplace = make_workplace(**GUARANTEED)
    with pytest.MonkeyPatch.context() as patch:
        recorded, before = [], GuaranteeTests._record

        def record(tests: GuaranteeTests, *measured: Any) -> Any:
            if len(recorded) == 2:
                raise KeyboardInterrupt
            recorded.append(measured)
            return before(tests, *measured)

        patch.setattr(GuaranteeTests, "_record", record)
        stopped = workplace.scope("run", "study.yaml")
        assert stopped.exit_code == 130, stopped.output
        assert len(recorded) == 2, stopped.output
    assert not (workplace.folder / "profiles").exists()
    return workplace


@pytest.fixture(scope="module")
def promised(guaranteed: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """The same, continued to its end."""
    workplace = _copy(guaranteed, tmp_path_factory.mktemp("promised"))
    result = workplace.scope("run", "study.yaml", "--json")
    assert result.exit_code == 0, result.output
    (workplace.folder / "exported.json").write_text(result.stdout)
    return workplace


def _copy(workplace: Workplace, folder: Path) -> Workplace:
    shutil.copytree(workplace.folder, folder, dirs_exist_ok=True)
    return Workplace(folder, folder / "study.yaml")


def _rows(workplace: Workplace) -> list[tuple[Any, ...]]:
    with sqlite3.connect(workplace.folder / "runs" / "tiny.db") as database:
        return database.execute(
            "SELECT id, policy_digest, prompt, seed FROM scope_generation WHERE kind = 'guarantee' ORDER BY id"
        ).fetchall()


def test_what_was_measured_before_a_kill_is_not_measured_again(guaranteed: Workplace, promised: Workplace) -> None:
    before, after = _rows(guaranteed), _rows(promised)
    assert len(before) == 2
    assert after[:2] == before
    assert len({row[1:] for row in after}) == len(after)
    assert len(after) % 5 == 0


def test_the_profile_states_its_promise_with_every_case(promised: Workplace) -> None:
    guarantee = Profile.load(promised.folder / "profiles" / "tiny.json").evidence["guarantee"]
    assert guarantee["statement"] == (
        "With confidence 0.75, a share of at least 0.5 of all prompts drawn like the 5 guarantee cases have PSNR of at "
        "least 28 dB, and a mean PSNR of at least 20 dB."
    )
    assert (guarantee["n"], guarantee["tested"], guarantee["allowed_misses"], guarantee["misses"]) == (5, 5, 1, 0)
    assert [(case["prompt"], case["seed"]) for case in guarantee["cases"]] == [
        (case["prompt"], case["seed"]) for case in GUARANTEED["guarantee_cases"]
    ]
    assert 28 <= guarantee["means"]["psnr_db"]["bound"] < guarantee["means"]["psnr_db"]["mean"]
    assert guarantee["corrected_for"] is None
    exported = json.loads((promised.folder / "exported.json").read_text())
    assert exported["promise"]["n"] == 1
    assert (
        exported["promises"]["passed"][-1] == Profile.load(promised.folder / "profiles/tiny.json").provenance["trial"]
    )


def test_search_prompts_are_held_beside_guarantee_prompts(promised: Workplace) -> None:
    found = json.loads((promised.folder / "exported.json").read_text())["promises"]["likeness"]
    assert found["policies"] in (1, 2)
    # Two search prompts and five others cannot differ by more than chance does once in twenty times.
    assert 2 / 21 <= found["probability"] <= 1
    said = " ".join(promised.scope("promises", "study.yaml").stdout.split())
    assert "Search prompts and guarantee prompts are not told apart: under" in said
    checks = json.loads(promised.scope("doctor", "study.yaml", "--json").stdout)["checks"]
    told = next(check for check in checks if check["name"] == "guarantee")
    assert told["state"] == "ok"
    assert told["message"].endswith(found["told"])


def test_tests_are_no_part_of_the_searchs_budget(promised: Workplace) -> None:
    state = json.loads(promised.scope("status", "study.yaml", "--json").stdout)
    kinds = state["generations"]
    assert (kinds["guarantee_stock"], kinds["stock"], kinds["exact"]) == (5, 2, 2)
    assert state["guarantee_equivalents"] > 5
    assert state["equivalents"] < 1 + 1 + 2
    told = promised.scope("status", "study.yaml").stdout
    assert "spent on the guarantee" in told
    assert "best on search prompts" in told


def test_the_table_is_shown_again(promised: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    table = json.loads(promised.scope("promises", "study.yaml", "--json").stdout)
    assert table == json.loads((promised.folder / "exported.json").read_text())["promises"]
    assert {cell["name"] for cell in table["cells"]} >= {"28,0.5", "32,0.9"}
    told = promised.scope("promises", "study.yaml").stdout
    assert "takes 14 cases" in told
    assert "passed" in told


def _spoilt(workplace: Workplace, folder: Path, psnr: float) -> Workplace:
    """A copy in which every policy came to `psnr` on all guarantee cases."""
    copy = _copy(workplace, folder)
    with sqlite3.connect(copy.folder / "runs" / "tiny.db") as database:
        database.execute(
            "UPDATE scope_generation SET metrics = json_set(metrics, '$.psnr_db', ?) WHERE kind = 'guarantee'", (psnr,)
        )
    shutil.rmtree(copy.folder / "profiles")
    return copy


def test_a_wish_that_nothing_holds_is_one_sentence_and_nothing_is_written(promised: Workplace, tmp_path: Path) -> None:
    workplace = _spoilt(promised, tmp_path, 26.0)
    result = workplace.scope("export", "study.yaml")
    assert result.exit_code == 2
    assert not result.stdout
    assert "What can be promised" in result.stderr
    *_, told = result.stderr.strip().splitlines()
    assert told.startswith(
        "Error: guarantee: no policy passed for a share of 0.5 with confidence 0.75: the most careful"
    )
    assert "misses 5 of 5 cases, of which 1 may miss" in told
    assert told.endswith("nothing was written.")
    assert not (workplace.folder / "profiles").exists()


def test_a_promise_that_is_picked_after_looking_is_tested_at_a_corrected_confidence(
    promised: Workplace, tmp_path: Path
) -> None:
    study = yaml.safe_load(promised.study.read_text())
    study["guarantee"] |= {"share": 0.25}
    workplace = _spoilt(promised, tmp_path, 31.0)
    (workplace.folder / "study.yaml").write_text(yaml.safe_dump(study))
    result = workplace.scope("export", "study.yaml", "--promise", "30,0.25", "--json")
    assert result.exit_code == 0, result.output
    guarantee = Profile.load(workplace.folder / "profiles" / "tiny.json").evidence["guarantee"]
    # Four floors and four shares, and the wish, which was another one when the policies were tested.
    assert guarantee["corrected_for"] == 17
    assert guarantee["confidence"] == pytest.approx(1 - 0.25 / 17)
    assert guarantee["floors"] == {"psnr_worst_prompt_db": 30.0}
    assert "picked from 17 promises after looking" in guarantee["assumption"]
    refused = workplace.scope("export", "study.yaml", "--promise", "30,0.7")
    assert refused.exit_code == 2
    assert "corrected for 17 promises, takes 12 guarantee cases" in refused.stderr
    assert "what holds is 30 dB for a share of 0.25" in refused.stderr


@pytest.mark.parametrize(
    ("promise", "complaint"),
    [
        ("26,0.5", "26,0.5 is not in the table; name one of its floors (25, 28, 30, 32) and one of its shares"),
        ("high", "'high' is not a floor in dB and a share; write them as 28,0.8"),
    ],
)
def test_a_promise_that_is_not_tested_is_refused(guaranteed: Workplace, promise: str, complaint: str) -> None:
    result = guaranteed.scope("export", "study.yaml", "--promise", promise)
    assert result.exit_code == 2
    assert complaint in result.stderr


def test_five_cases_for_nine_in_ten_are_told_what_they_can_promise(make_workplace: Callable[..., Workplace]) -> None:
    workplace = make_workplace(**{**GUARANTEED, "guarantee": {"share": 0.9, "confidence": 0.9}})
    told = (
        "guarantee_cases: 5 guarantee cases can promise at most a share of 0.63 with confidence 0.9, if none misses, "
        "and a share of 0.9 takes 22; add 17, or ask for less."
    )
    refused = workplace.scope("run", "study.yaml")
    assert refused.exit_code == 2
    assert refused.stderr == f"Error: {told}\n"
    assert not (workplace.folder / "runs").exists()
    assert told in workplace.scope("doctor", "study.yaml").stdout


def test_verify_counts_further_cases_against_the_promise(promised: Workplace, tmp_path: Path) -> None:
    workplace = _copy(promised, tmp_path / "work")
    path = workplace.folder / "profiles" / "tiny.json"
    profile = json.loads(path.read_text())
    held = profile["evidence"]["guarantee"]["cases"][0]
    # A tested prompt says nothing new, and nor does a held-out one that is measured anyway.
    further = [{"prompt": held["prompt"], "seed": 5}, GUARANTEED["held_out_cases"][0]]
    (workplace.folder / "further.json").write_text(json.dumps(further))
    profile["evidence"]["guarantee"] |= {"share": 0.995, "floors": {"psnr_worst_prompt_db": 99.0}}
    path.write_text(json.dumps(profile))
    result = workplace.scope(
        "verify", "profiles/tiny.json", "study.yaml", "--cases", "further.json", "--json", "--strict"
    )
    assert result.exit_code == 3, result.output
    figures = json.loads(result.stdout)
    assert [(case["prompt"], case["further"]) for case in figures["cases"]] == [
        (GUARANTEED["held_out_cases"][0]["prompt"], False), (held["prompt"], True),
    ]  # fmt: skip
    assert figures["cases"][0]["missed"] == ["psnr_worst_prompt_db"]
    assert figures["n"] == 1
    assert figures["evidence"] is not None
    promise = figures["promise"]
    assert (promise["n"], promise["held"], promise["broken"]) == (1, 0, True)
    assert promise["chance"] == pytest.approx(0.005)


def test_a_promise_is_broken_by_more_misses_than_it_makes_likely() -> None:
    tested = [{"prompt": "tested", "seed": 1}]
    guarantee = {
        "statement": "so", "share": 0.9, "confidence": 0.9, "floors": {"psnr_worst_prompt_db": 30}, "cases": tested,
    }  # fmt: skip

    def counted(misses: int) -> dict[str, Any]:
        psnr = [20.0] * misses + [35.0] * (8 - misses)
        return against_promise(
            guarantee, [{"prompt": f"{number}", "psnr_db": value} for number, value in enumerate(psnr)] + tested
        )

    assert [counted(misses)["broken"] for misses in range(6)] == [False, False, False, False, True, True]
    assert counted(3)["chance"] == pytest.approx(1 - binom.cdf(2, 8, 0.1))
    assert (counted(3)["n"], counted(3)["held"]) == (8, 5)
    assert against_promise(guarantee, tested)["broken"] is False


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[]", "should hold a list"),
        ("- {prompt: a}", "case 0.seed"),
        ("- {prompt: a, seed: 1}\n- {prompt: a, seed: 1}", "same prompt and seed twice"),
        (None, "--cases: "),
    ],
)
def test_a_file_of_cases_that_is_none_is_refused(
    promised: Workplace, tmp_path: Path, content: str | None, complaint: str
) -> None:
    path = tmp_path / "cases.yaml"
    if content is not None:
        path.write_text(content)
    result = promised.scope("verify", "profiles/tiny.json", "study.yaml", "--cases", str(path))
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
