from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from calibrate.errors import CalibrateError
from calibrate.study_file import Floors, StudyFile


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
