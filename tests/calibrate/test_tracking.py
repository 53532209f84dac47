"""Studies as runs of MLflow, in an SQLite file of its own."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from calibrate.errors import CalibrateError
from calibrate.progress import Narrator
from calibrate.session import open_session
from calibrate.study.study_file import StudyFile
from calibrate.tracking import EXPERIMENT, tracked
from scope_runtime import Profile
from tests.calibrate.conftest import TINY_STUDY, Workplace

Make = Callable[..., Workplace]
SMALL: dict[str, Any] = {
    "search_cases": TINY_STUDY["search_cases"][:1],
    "held_out_cases": TINY_STUDY["held_out_cases"][:1],
    "budget": {"trials": 1},
    "timing": {"max_repeats": 0},
    "floors": {"psnr_db": 1.0, "psnr_worst_prompt_db": None},
    "tracking": {"mlflow": "sqlite:///runs/mlflow.db"},
}


def test_a_study_is_one_run_however_often_it_is_continued(
    make_workplace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace = make_workplace(**SMALL)
    ran = workplace.scope("run", "study.yaml")
    assert ran.exit_code == 0, ran.output
    assert "Warning" not in ran.stderr
    client = MlflowClient(tracking_uri=f"sqlite:///{workplace.folder / 'runs/mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    assert run.data.params["generation.height"] == str(TINY_STUDY["generation"]["height"])
    assert run.data.tags["budget.trials"] == "1"
    evidence = Profile.load(workplace.folder / "profiles/tiny.json").evidence
    assert run.data.metrics["psnr_db"] == evidence["psnr_db"]
    assert run.data.metrics["speedup_evaluations"] == evidence["speedup_evaluations"]
    left = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert left >= {"study.yaml", "tiny.json", "tiny.mp4", "tiny-front.png", "tiny.html"}

    study = yaml.safe_load(workplace.study.read_text())
    workplace.study.write_text(yaml.safe_dump(study | {"budget": {"trials": 2}}))
    told = _continue(workplace, monkeypatch)
    (same,) = client.search_runs([experiment.experiment_id])
    assert same.info.run_id == run.info.run_id
    assert (same.info.status, same.data.tags["budget.trials"]) == ("KILLED", "2")
    assert told == ["Warning: tracking.mlflow: MLflow could not be told (ConnectionError); the study goes on without."]


def _continue(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Goes on with a study until its user stops it, beside a server that fails in the midst; what is said of that."""
    monkeypatch.chdir(workplace.folder)

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("http://somewhere")

    monkeypatch.setattr(MlflowClient, "log_artifact", fail)
    narrator, told = Narrator(), []
    monkeypatch.setattr(narrator, "say", told.append)
    path = Path("profiles/tiny.json")
    with (
        open_session(Path("study.yaml"), narrator) as session,
        contextlib.suppress(KeyboardInterrupt),
        tracked(session.file, session.find().study, narrator) as run,
    ):
        assert run is not None
        run.finish(Profile.load(path), path)
        raise KeyboardInterrupt
    return told


@pytest.mark.parametrize(
    ("address", "missing", "said"),
    [
        ("http://127.0.0.1:9", False, "nothing answers there as MLflow does"),
        ("sqlite:///study.yaml", False, "study.yaml is the study file itself"),
        ("sqlite:///runs/mlflow.db", True, r"scope-calibrate\[mlflow\]"),
    ],
)
def test_what_cannot_be_told_is_said_before_anything_is_computed(
    make_workplace: Make, monkeypatch: pytest.MonkeyPatch, address: str, missing: bool, said: str
) -> None:
    workplace = make_workplace(tracking={"mlflow": address})
    if missing:
        monkeypatch.setitem(sys.modules, "mlflow", None)
    for command in ("doctor", "run"):
        refused = workplace.scope(command, "study.yaml")
        assert refused.exit_code == 2
        assert re.search(said, refused.output)
    assert sorted(path.name for path in workplace.folder.iterdir()) == ["pipe", "study.yaml"]


@pytest.mark.parametrize(
    "address", ["https://me:word@host", "https://word@host", "https://host/?token=word", "file:///word", "word"]
)
def test_an_address_with_a_secret_or_of_another_kind_is_refused_and_not_shown(tmp_path: Path, address: str) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(TINY_STUDY | {"tracking": {"mlflow": address}}))
    with pytest.raises(CalibrateError, match=r"tracking\.mlflow: ") as refused:
        StudyFile(study)
    assert "word" not in str(refused.value).replace("password", "")
