"""Looking at a generation while it runs, and ending it where its beginning is hopeless."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

import dashboard
from calibrate.search import Search, _hopeless_beginning
from calibrate.serve import STORAGE_VARIABLE
from calibrate.store import Storage, Store
from calibrate.study_file import Case, Floors, Generation, ModelSpec
from calibrate.target import Target
from dashboard.page import POLICY
from scope_runtime import Policy, run_policy
from tests.calibrate.conftest import Workplace
from tests.tiny import CALL

Make = Callable[..., Workplace]

CASE = Case(prompt="a red circle moving left", seed=1)
NONE = {"psnr_db": None, "psnr_worst_prompt_db": None}


def _target(folder: Path, **changes: Any) -> Target:
    spec = ModelSpec.model_validate({"path": str(folder), "threads": 1})
    return Target.load(folder, spec, Generation.model_validate(CALL | changes))


@pytest.mark.parametrize("policy", [None, Policy(warmup=2, max_skip=2)], ids=["stock", "policy"])
def test_what_is_watched_is_final_and_changes_nothing(tiny_folder: Path, policy: Policy | None) -> None:
    target = _target(tiny_folder)
    seen: list[torch.Tensor] = []

    def generate(**watching: Any) -> torch.Tensor:
        if policy is None:
            return target.denoise(CASE, **watching).latents
        with run_policy(target.pipe, policy):
            return target.denoise(CASE, **watching).latents

    latents = generate(watch=lambda complete: seen.append(complete.cpu().clone()))
    assert torch.equal(latents, generate())
    # Three blocks of three latent frames; nothing is left to be saved when the last one is complete.
    assert [found.shape[2] for found in seen] == [3, 6]
    assert all(torch.equal(found, latents[:, :, : found.shape[2]]) for found in seen)
    whole, _ = target.decode(latents)
    first, _ = target.decode(seen[0])
    np.testing.assert_allclose(first, whole[: len(first)], atol=1e-5)
    assert len(first) == 9


def test_a_video_of_several_windows_is_not_watched(tiny_folder: Path) -> None:
    target = _target(tiny_folder, num_frames=57, base_num_frames=33, overlap_history=9)
    target.denoise(CASE, watch=lambda _: pytest.fail("its frames were looked at"))


def test_what_watching_takes_is_not_denoising(tiny_folder: Path) -> None:
    target = _target(tiny_folder)
    slow = target.denoise(CASE, watch=lambda _: time.sleep(0.5))
    assert slow.seconds < 0.9


@pytest.mark.parametrize(
    ("floors", "psnr", "stopped"),
    [
        (NONE, [5.0, 5.0], False),
        ({"psnr_db": 35.0}, [29.5, 29.5], False),
        ({"psnr_db": 35.0}, [28.5, 28.5], True),
        ({**NONE, "psnr_worst_prompt_db": 30.0}, [23.0, 24.0], True),
        ({**NONE, "psnr_worst_prompt_db": 30.0}, [20.0, 30.0], False),
        ({**NONE, "psnr_worst_frame_db": 30.0}, [40.0, 29.9], True),
        ({**NONE, "psnr_worst_frame_db": 30.0}, [30.0, 30.0], False),
    ],
)
def test_a_beginning_is_hopeless_far_below_a_mean_and_right_below_a_worst_frame(
    floors: dict[str, float | None], psnr: list[float], stopped: bool
) -> None:
    reason = _hopeless_beginning(psnr, Floors.model_validate({**NONE, **floors}))
    assert (reason is not None) == stopped


@pytest.fixture(scope="module")
def hopeless(make_workplace: Make) -> Workplace:
    """A study whose floor no candidate comes near."""
    search = {"candidates": [{"warmup": 1, "max_skip": 4}, {"warmup": 1, "max_skip": 3}]}
    workplace = make_workplace(floors=NONE | {"psnr_db": 99.0}, search=search, budget={"trials": 2}, name="hopeless")
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 2, result.output
    assert "in the first 9 of 33 frames" in result.output
    return workplace


def test_a_hopeless_clip_is_not_finished_and_counts_for_what_it_took(hopeless: Workplace) -> None:
    storage = Storage(f"sqlite:///{hopeless.folder}/runs/hopeless.db")
    store = Store.find_study(storage, "hopeless")
    rows = store.complete("candidate")
    stock = store.complete("stock")[0].evaluations
    assert stock is not None
    assert len(rows) == 2, "one prompt each"
    for row in rows:
        assert row.stock_evaluations is not None
        assert 0 < row.stock_evaluations < stock
        assert row.reason is not None
        assert row.reason.endswith("99 dB asked for, in the first 9 of 33 frames")
    spent = sum(row.evaluations or 0 for kind in ("stock", "exact", "candidate") for row in store.complete(kind))
    assert store.equivalents() == pytest.approx(spent / stock)
    storage.close()
    entry = json.loads(hopeless.scope("front", "study.yaml", "--json").stdout)[0]
    assert not entry["feasible"]
    assert entry["stopped"].startswith("stopped early")


def test_without_memory_for_a_look_the_generation_goes_on(
    make_workplace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, looks = Target.decode, []

    def decode(target: Target, latents: torch.Tensor) -> Any:
        if latents.shape[2] < 9:
            looks.append(latents.shape[2])
            raise torch.OutOfMemoryError("no room")
        return real(target, latents)

    workplace = make_workplace(budget={"trials": 1}, name="tight")
    monkeypatch.setattr(Target, "decode", decode)
    assert workplace.scope("run", "study.yaml").exit_code == 0
    assert looks == [3, 3], "once a prompt"
    status = json.loads(workplace.scope("status", "study.yaml", "--json").stdout)
    assert status["generations"]["candidate"] == 2


def test_a_clip_that_was_not_finished_is_not_made_again(hopeless: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Search, "_generate", lambda *_: pytest.fail("it was generated again"))
    study = hopeless.study.read_text()
    hopeless.study.write_text(study.replace("trials: 2", "trials: 2\n  minutes: 5"))
    assert hopeless.scope("run", "study.yaml").exit_code == 2
    hopeless.study.write_text(study)


def test_the_dashboard_shows_how_far_it_came(hopeless: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORAGE_VARIABLE, f"sqlite:///{hopeless.folder}/runs/hopeless.db")
    app = AppTest.from_file(str(Path(dashboard.__file__).with_name("app.py")), default_timeout=60)
    app.query_params["view"] = POLICY
    app.run()
    assert not app.exception
    assert not app.error
    assert any("in the first 9 of 33 frames" in element.value for element in app.markdown)
