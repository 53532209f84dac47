"""Made-up studies: one with an export and clips, one with two kinds of policies, one with promises; as fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from calibrate.display.data import StudyData, best_point, load_study
from calibrate.measure.clips import ClipShelf
from calibrate.measure.pictures import comparison_clip
from calibrate.quality.metrics import METRIC_VERSION
from calibrate.results.promises import declared_wish
from calibrate.results.sequence import SEQUENCES
from calibrate.search.optuna_study import open_optuna_study
from calibrate.store import GUARANTEE, Generation, Storage, Store
from calibrate.study.study_file import Study
from scope_runtime import ModelIdentity, Policy, Profile, Scheduler, Settings
from studies.bench.synthetic_study import write_study

TRIALS = 40
EVIDENCE = {
    "speedup_evaluations": 2.5, "speedup_denoise": 2.0, "speedup_end_to_end": 1.8, "psnr_db": 38.5,
    "psnr_worst_prompt_db": 37.0, "psnr_worst_frame_db": 30.0, "ssim": 0.97, "n": 1, "metric_version": METRIC_VERSION,
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A study on disk.

    Attributes:
        folder: Working directory of the dashboard.
        url: Of its database.
        data: What the dashboard reads.
        best: The fastest trial above the floors; it is exported, and has clips.
    """

    folder: Path
    url: str
    data: StudyData
    best: int


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("dashboard")
    url = f"sqlite:///{folder / 'made.db'}"
    storage = Storage(url)
    store = write_study(storage, "made", TRIALS, estimates=True)
    write_study(storage, "other", 6, seed=1)
    data = load_study(storage, "made")
    best = best_point(data.points, data.study.floors, "speedup_evaluations")
    assert best is not None
    profile = profile_of(data.results[best].policy)
    store.add_profile(best, "fastest", "profiles/made.json", profile.to_dict())
    _keep_clips(folder, data, best)
    data = load_study(storage, "made")
    storage.close()
    return Made(folder, url, data, best)


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A study with thresholds and with learned weights."""
    folder = tmp_path_factory.mktemp("mixed")
    url = f"sqlite:///{folder / 'mixed.db'}"
    storage = Storage(url)
    write_study(storage, "mixed", 20, learned=20, estimates=True)
    data = load_study(storage, "mixed")
    storage.close()
    best = best_point(data.points, data.study.floors, "speedup_evaluations")
    assert best is not None
    return Made(folder, url, data, best)


@pytest.fixture(scope="session")
def promised(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A study that has tested its two most careful policies: five prompts of one are good, one of the other is bad."""
    folder = tmp_path_factory.mktemp("promised")
    storage = Storage(f"sqlite:///{folder / 'promised.db'}")
    store = write_study(storage, "promised", 12)
    text = yaml.safe_load(store.study.yaml_text)
    text["guarantee"] = {"share": 0.6, "confidence": 0.9}
    text["guarantee_cases"] = [{"prompt": f"prompt {number}", "seed": number} for number in range(5)]
    text["floors"] = {"psnr_db": 30.0, "psnr_worst_prompt_db": 30.0}
    study = Study.model_validate(text)
    Store.open_study(
        storage, name="promised", yaml_text=yaml.safe_dump(text), fixed_parts=study.fixed_parts(),
        settings=store.study.settings, model=store.study.model,
    )  # fmt: skip
    results = load_study(storage, "promised").results
    careful, bold = sorted(results.values(), key=lambda result: result.speedup_evaluations)[:2]
    for result, psnr in ((careful, [41.0, 42.0, 43.0, 44.0, 45.0]), (bold, [20.0, 42.0, 42.0, 42.0, 42.0])):
        for case, value in zip(study.guarantee_cases, psnr, strict=True):
            row = store.complete("candidate")[0]
            store.add(
                Generation(
                    kind=GUARANTEE, trial_number=result.trial, environment_id=row.environment_id, prompt=case.prompt,
                    seed=case.seed, policy=result.policy, settings={}, evaluations=10, stock_evaluations=30,
                    metrics={**(row.metrics or {}), "psnr_db": value}, metric_version=METRIC_VERSION, state="complete",
                    started=row.started, finished=row.finished,
                )
            )  # fmt: skip
    assert study.guarantee is not None
    kept = {
        "trials": [careful.trial, bold.trial],
        "finished": True,
        "wish": declared_wish(study.guarantee, study.floors),
    }
    open_optuna_study(store, create=False).set_user_attr(SEQUENCES, [kept])
    data = load_study(storage, "promised")
    storage.close()
    return Made(folder, f"sqlite:///{folder / 'promised.db'}", data, careful.trial)


@pytest.fixture
def read_only(made: Made) -> Iterator[Storage]:
    storage = Storage(made.url, read_only=True)
    yield storage
    storage.close()


def profile_of(policy: dict[str, object]) -> Profile:
    """A profile with made-up evidence."""
    settings = Settings(
        height=64, width=64, num_frames=97, num_inference_steps=20, guidance_scale=4.0, ar_step=5,
        causal_block_size=5, dtype="float32", scheduler=Scheduler("UniPCMultistepScheduler"),
    )  # fmt: skip
    identity = ModelIdentity("Pipeline", "Transformer", "0" * 16, "1" * 16)
    return Profile(Policy.from_dict(policy), settings, identity, EVIDENCE)


def _keep_clips(folder: Path, data: StudyData, trial: int) -> None:
    frames = np.random.default_rng(0).random((6, 32, 32, 3), dtype=np.float32)
    shelf = ClipShelf(folder / data.study.clip_folder, 1.0)
    for case in data.study.search_cases:
        clip = comparison_clip(frames, frames[::-1], 24, preset="ultrafast")
        shelf.keep(data.results[trial].policy, case.prompt, case.seed, lambda clip=clip: clip)
