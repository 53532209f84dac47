"""A made-up study with an export and clips, in a folder from which the dashboard runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from calibrate.clips import ClipShelf
from calibrate.pictures import comparison_clip
from calibrate.quality import METRIC_VERSION
from calibrate.store import Storage
from dashboard.data import StudyData, best_point, load_study
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
