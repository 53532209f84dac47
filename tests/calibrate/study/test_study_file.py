from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibrate.errors import CalibrateError
from calibrate.spec.floors import Floors
from calibrate.study.study_file import StudyFile, recorded_study
from scope_runtime import Policy, ProfileError
from tests.calibrate.conftest import TINY_STUDY
from tests.mutation import places


def _write(folder: Path, study: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(study if isinstance(study, str) else yaml.safe_dump(study))
    return path


def _change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(study: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            study = study.setdefault(parent, {}) if not parent.isdigit() else study[int(parent)]  # type: ignore[index]
        study[last] = value

    return apply


def test_the_bundled_study_is_valid_and_finds_its_model_beside_itself() -> None:
    file = StudyFile(Path("studies/reference.yaml"))
    assert file.model_path == Path("studies/reference/pipeline")
    assert file.study.storage_url == "sqlite:///runs/reference.db"


@pytest.mark.parametrize(
    ("field", "value", "mend"),
    [
        ("generation.num_inference_step", 30, "known here: height, width"),
        ("generation.height", "sixty-four", "valid integer"),
        ("generation.height", 65, "multiple of 16"),
        ("generation.guidance_scale", float("nan"), "finite number"),
        ("floors.psnr_db", -1, "greater than or equal to 0"),
        ("search.max_skip", {"low": 5, "high": 2}, "low (5) must not exceed high (2)"),
        ("search.cache_quantile", {"low": 0, "high": 1.5}, "less than or equal to 1"),
        ("search.order", [3], "0, 1 or 2"),
        ("search.order", [], "at least 1 item"),
        ("search_cases.0.seed", -4, "greater than or equal to 0"),
        ("model.device", "tpu", "match pattern"),
        ("budget.trials", 0, "greater than or equal to 1"),
        ("export", {"rule": "best-quality"}, "needs min_speedup"),
        ("export", {"rule": "cheapest"}, "'fastest', 'best-quality' or 'knee'"),
    ],
)
def test_an_error_is_one_sentence_with_file_field_and_mend(
    tmp_path: Path, tiny_study: dict[str, Any], field: str, value: Any, mend: str
) -> None:
    _change(field, value)(tiny_study)
    path = _write(tmp_path, tiny_study)
    with pytest.raises(CalibrateError) as caught:
        StudyFile(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {field}")
    assert mend in message
    assert "\n" not in message
    assert message.endswith(".")


def test_a_missing_field_is_named(tmp_path: Path, tiny_study: dict[str, Any]) -> None:
    del tiny_study["generation"]["width"]
    with pytest.raises(CalibrateError, match=r"generation\.width: this field is missing"):
        StudyFile(_write(tmp_path, tiny_study))


@pytest.mark.parametrize("content", ["- a\n- b\n", "name: [unclosed", "", "\t: x"])
def test_a_file_that_is_no_study_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(CalibrateError, match=r"study\.yaml: .*YAML"):
        StudyFile(_write(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrateError, match=r"nowhere\.yaml: there is no such study file"):
        StudyFile(tmp_path / "nowhere.yaml")


def test_held_out_prompts_must_not_be_searched_even_under_another_seed(
    tmp_path: Path, tiny_study: dict[str, Any]
) -> None:
    tiny_study["held_out_cases"][0] = {**tiny_study["search_cases"][0], "seed": 99}
    with pytest.raises(CalibrateError, match="share no prompt with search_cases"):
        StudyFile(_write(tmp_path, tiny_study))


def test_a_guarantee_needs_cases_of_its_own_and_floors_that_hold_for_each_prompt(
    tmp_path: Path, tiny_study: dict[str, Any]
) -> None:
    wish, cases = {"share": 0.9, "confidence": 0.9}, [{"prompt": "a red square moving up", "seed": 5}]
    for changes, complaint in (
        ({"guarantee": wish}, "guarantee_cases must name the prompts .* with confidence 0.9 takes 22"),
        ({"guarantee_cases": cases}, "guarantee must say what guarantee_cases are to promise"),
        ({"guarantee": {**wish, "share": 1.0}, "guarantee_cases": cases}, r"guarantee\.share: .*less than 1"),
        (
            {"guarantee": wish, "guarantee_cases": cases, "floors": {"psnr_worst_prompt_db": None}},
            "floors sets none; set psnr_worst_prompt_db",
        ),
        (
            {"guarantee": wish, "guarantee_cases": [{**tiny_study["held_out_cases"][0], "seed": 99}]},
            "guarantee_cases must share no prompt with held_out_cases",
        ),
    ):
        with pytest.raises(CalibrateError, match=complaint):
            StudyFile(_write(tmp_path, {**tiny_study, **changes}))
    study = {**tiny_study, "guarantee": wish, "guarantee_cases": cases}
    before = StudyFile(_write(tmp_path, tiny_study)).study
    assert StudyFile(_write(tmp_path, study)).study.fixed_digest() == before.fixed_digest()


def test_tests_on_further_prompts_stand_in_the_margins_place(tmp_path: Path, tiny_study: dict[str, Any]) -> None:
    assert StudyFile(_write(tmp_path, tiny_study)).study.floors.safety_margin_db == 1.0
    tiny_study["guarantee"] = {"share": 0.9, "confidence": 0.9}
    tiny_study["guarantee_cases"] = [{"prompt": "a red square moving up", "seed": 5}]
    assert StudyFile(_write(tmp_path, tiny_study)).study.floors.safety_margin_db == 0.0
    tiny_study["floors"]["safety_margin_db"] = 2.0
    assert StudyFile(_write(tmp_path, tiny_study)).study.floors.safety_margin_db == 2.0


def test_what_may_change_on_resume_does_not_change_the_digest(tmp_path: Path, tiny_study: dict[str, Any]) -> None:
    before = StudyFile(_write(tmp_path, tiny_study)).study.fixed_digest()
    tiny_study["floors"]["psnr_db"] = 33.0
    tiny_study["budget"] = {"trials": 99, "minutes": 3}
    assert StudyFile(_write(tmp_path, tiny_study)).study.fixed_digest() == before
    tiny_study["generation"]["num_inference_steps"] += 1
    assert StudyFile(_write(tmp_path, tiny_study)).study.fixed_digest() != before


def test_a_password_does_not_survive_in_the_text_for_the_record(tmp_path: Path, tiny_study: dict[str, Any]) -> None:
    tiny_study["storage"] = "postgresql+psycopg://anna:hunter2@db/scope"
    path = _write(tmp_path, tiny_study)
    path.write_text(path.read_text() + "# hunter2\n")
    text = StudyFile(path).masked_text
    assert "hunter2" not in text
    assert "anna:***@db" in text


def test_the_margin_is_asked_for_in_the_search_only() -> None:
    floors = Floors(psnr_db=35, psnr_worst_prompt_db=30, ssim=0.9, safety_margin_db=2)
    figures = {"psnr_db": 36.0, "psnr_worst_prompt_db": 33.0, "ssim": 0.95}
    assert floors.shortfalls(figures, margin=False) == pytest.approx(
        {"psnr_db": -1, "psnr_worst_prompt_db": -3, "ssim": -0.05}
    )
    assert floors.shortfalls(figures, margin=True) == pytest.approx(
        {"psnr_db": 1, "psnr_worst_prompt_db": -1, "ssim": -0.05}
    )
    assert floors.with_margin == " with their safety margin of 2 dB"
    assert Floors(psnr_db=None, psnr_worst_prompt_db=None, ssim=0.9).with_margin == ""


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("search_cases.0.prompt", "a\0b", "must not hold the character U+0000"),
        ("search_cases.0.prompt", "a\x1b[31mb", "must not hold the character U+001B"),
        ("held_out_cases.1.prompt", "a\ud800b", "must not hold the character U+D800"),
        ("generation.negative_prompt", "a\x85b", "must not hold the character U+0085"),
        ("export.path", "a\0b", "must not hold the character U+0000"),
        ("cache", "a\0b", "must not hold the character U+0000"),
        ("storage", "sqlite:///a\0b", "must not hold the character U+0000"),
        ("model.device", "cuda:" + "9" * 5000, "match pattern"),
        ("search_cases.0.prompt", True, "valid string, not True; put it in quotes"),
        ("search_cases.0.prompt", 750, "valid string, not 750; put it in quotes"),
        ("timing", "a fox", "should be a mapping"),
        ("generation", [], "should be a mapping"),
        ("budget.trials", 2**40, "should be at most 2147483647"),
        ("timing.max_repeats", 10**30, "should be at most 2147483647"),
        ("floors.max_memory", "9" * 400 + "GB", "byte string"),
        ("floors.max_memory", 2**63, "less than 1000000000000000000"),
        ("floors.psnr_db", "x" * 5000, "valid number"),
        ("clip_megabytes", 1e300, "less than or equal to 1000000000"),
        ("name", "postgresql://me:hunter2@db", "not an address"),
        ("a\nb", 1, "unknown field"),
        ("postgresql://me:hunter2@db", 1, "an address: unknown field"),
    ],
)
def test_what_could_not_be_kept_is_refused_by_field(
    tmp_path: Path, tiny_study: dict[str, Any], field: str, value: Any, complaint: str
) -> None:
    _change(field, value)(tiny_study)
    with pytest.raises(CalibrateError) as error:
        StudyFile(_write(tmp_path, tiny_study))
    message = str(error.value)
    assert complaint in message
    assert field in message or repr(field) in message or "://" in field
    assert "hunter2" not in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_skip", {"low": 1, "high": 10_001}),
        ("max_skip", {"low": -1, "high": 2}),
        ("warmup", {"low": 0, "high": 2}),
        ("warmup", {"low": 1, "high": 2**31}),
        ("tail", {"low": 0, "high": 10_001}),
        ("context_window", [None, 2**31]),
    ],
)
def test_a_search_offers_only_what_a_policy_allows(
    tmp_path: Path, tiny_study: dict[str, Any], field: str, value: Any
) -> None:
    offered = value if isinstance(value, list) else list(value.values())
    refused = 0
    for choice in offered:
        try:
            Policy(**{field: choice})
        except ProfileError:
            refused += 1
    assert refused == 1
    tiny_study["search"][field] = value
    with pytest.raises(CalibrateError, match=rf"search.*{field}"):
        StudyFile(_write(tmp_path, tiny_study))


def test_a_byte_order_mark_is_no_part_of_a_study(tmp_path: Path, tiny_study: dict[str, Any]) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tiny_study), encoding="utf-8-sig")
    assert StudyFile(path).study.name == "tiny"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"name: \xff\xfe", "not a text file"),
        (b"name: tiny # " + b"x" * 2**20, "the file is too large"),
        (b"name: tiny\nname: other\n", "name: is given twice, in lines 1 and 2"),
        (b"5", "YAML mapping"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(CalibrateError, match=complaint) as error:
        StudyFile(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_device_that_never_ends_is_too_large() -> None:
    with pytest.raises(CalibrateError, match="/dev/zero: the file is too large"):
        StudyFile(Path("/dev/zero"))


FULL_STUDY: dict[str, Any] = copy.deepcopy(TINY_STUDY) | {
    "search": {
        "max_skip": {"low": 1, "high": 4}, "warmup": {"low": 1, "high": 4}, "order": [1, 2],
        "cache_quantile": {"low": 0.0, "high": 0.3}, "max_step_ratio": [None, 2.0], "context_dtype": [None],
        "candidates": [{"warmup": 1, "max_skip": 2}],
    },
    "floors": {"psnr_db": 20.0, "max_memory": "40GB"},
    "budget": {"trials": 3, "minutes": 3.0},
    "timing": {"max_variation": 0.2, "max_repeats": 3},
    "quality": {"scores": [{"name": "s", "function": "a:b", "options": {"x": 1}}]},
    "seed": 3,
    "export": {"rule": "knee", "path": "p.json"},
}  # fmt: skip

NESTED: Any = []
for _ in range(100):
    NESTED = [NESTED]

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**45), 10**45), st.floats(), st.text(max_size=5),
    st.binary(max_size=3), st.dates(), st.lists(st.integers(), max_size=2), st.just(NESTED),
    st.dictionaries(st.one_of(st.text(max_size=3), st.integers(), st.booleans()), st.integers(), max_size=2),
    st.fixed_dictionaries({"low": st.integers(), "high": st.integers()}),
    st.sampled_from(["1e400GB", "9" * 5000, "no", "a\0b", "../..", "\x1b[31m", "sqlite:///x"]),
)  # fmt: skip
FRAGMENTS = st.sampled_from(
    ["\t", "&a ", "*a", "!!int ", "!!", "{", "[", "'", '"', ": ", "- ", "\0", "\n", "%", "@", "|", "<<: ", "? ", "#"]
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_mutated_study_is_refused_in_one_sentence_or_valid(data: st.DataObject, tmp_path: Path) -> None:
    study = copy.deepcopy(FULL_STUDY)
    *parents, last = data.draw(st.sampled_from(places(study)))
    place: Any = study
    for key in parents:
        place = place[key]
    match data.draw(st.sampled_from(["change", "change", "remove", "add"])):
        case "change":
            place[last] = data.draw(JUNK)
        case "remove":
            del place[last]
        case "add" if isinstance(place, dict):
            place[data.draw(st.one_of(st.text(max_size=3), st.integers(), st.none()))] = data.draw(JUNK)
    text = yaml.safe_dump(study)
    if data.draw(st.integers(0, 3)) == 0:
        start = data.draw(st.integers(0, len(text)))
        text = text[:start] + data.draw(FRAGMENTS) + text[start + data.draw(st.integers(0, 3)) :]
    path = tmp_path / "study.yaml"
    path.write_text(text)
    try:
        file = StudyFile(path)
    except CalibrateError as error:
        message = str(error)
        assert re.match(
            rf"{re.escape(str(path))}: (.+: |the file |this is not valid YAML \(line \d+|a study is)", message
        )
        assert "\n" not in message
        assert len(message) < 600
        return
    # What was accepted is accepted again as it is recorded, and can be asked for everything that a run asks it.
    assert recorded_study(file.text) == file.study
    assert file.study.fixed_digest()
    assert str(file.study.profile_path)
    assert str(file.study.clip_folder)
