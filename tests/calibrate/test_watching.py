"""Looking at a generation while it runs, and ending it where its beginning is hopeless."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

import dashboard
from calibrate.families import load_target
from calibrate.families.skyreels_v2.spec import SkyReelsV2Spec
from calibrate.families.target import Target
from calibrate.measure.candidate import Measure
from calibrate.measure.early_stop import out_of_reach
from calibrate.quality.metrics import PERFECT, at_best, compare, floor_figures, frame_errors
from calibrate.results.result import BLOCKS
from calibrate.serve import STORAGE_VARIABLE
from calibrate.spec.floors import Floors
from calibrate.spec.generation import Case, Generation
from calibrate.store import Storage, Store
from dashboard.page import POLICY
from scope_runtime import Policy, run_policy
from tests.calibrate.conftest import Workplace
from tests.tiny import CALL

Make = Callable[..., Workplace]

CASE = Case(prompt="a red circle moving left", seed=1)
NONE = {"psnr_db": None, "psnr_worst_prompt_db": None}


def _target(folder: Path, **changes: Any) -> Target:
    spec = SkyReelsV2Spec.model_validate({"path": str(folder), "threads": 1})
    return load_target(folder, spec, Generation.model_validate(CALL | changes))


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
    slept: list[float] = []

    def look(_: Any) -> None:
        began = time.perf_counter()
        time.sleep(0.5)
        slept.append(time.perf_counter() - began)

    began = time.perf_counter()
    slow = target.denoise(CASE, watch=look)
    assert slept
    assert slow.seconds <= time.perf_counter() - began - sum(slept)


# A clip of 36 frames whose first block has 9, at so many dB each; a quarter of the clip, worth 6.02 dB.
QUARTER = 10 * math.log10(4)


@pytest.mark.parametrize(
    ("floors", "first", "before", "cases", "stopped"),
    [
        (NONE, 5.0, [], 1, False),
        # The other frames may be perfect: the clip is a quarter's worth better than its beginning, at best.
        ({"psnr_worst_prompt_db": 30.0}, 30.1 - QUARTER, [], 2, False),
        ({"psnr_worst_prompt_db": 30.0}, 29.9 - QUARTER, [], 2, True),
        ({"psnr_db": 35.0}, 35.1 - QUARTER, [], 1, False),
        ({"psnr_db": 35.0}, 34.9 - QUARTER, [], 1, True),
        # So may be the other prompts: a mean is out of reach only where not even they can lift it.
        ({"psnr_db": 35.0}, 12.0, [], 2, False),
        ({"psnr_db": 35.0}, 12.0, [20.0], 3, False),
        ({"psnr_db": 35.0}, 12.0, [45.0], 2, True),
        ({"psnr_db": 35.0}, 26.0 - QUARTER, [45.0], 2, False),
        # A frame and a block stay what they are.
        ({"psnr_worst_frame_db": 30.0}, 29.9, [], 2, True),
        ({"psnr_worst_frame_db": 30.0}, 30.1, [], 2, False),
        ({"psnr_worst_block_db": 30.0}, 29.9, [], 2, True),
        ({"psnr_worst_block_db": 30.0}, 30.1, [], 2, False),
    ],
)
def test_a_beginning_is_given_up_where_nothing_that_follows_can_hold_the_floor(
    floors: dict[str, float], first: float, before: list[float], cases: int, stopped: bool
) -> None:
    best = at_best(np.full(9, 10 ** (-first / 10)), [(0, 9)], 36)
    known = [replace(PERFECT, psnr_db=psnr) for psnr in before]
    reason = out_of_reach(Floors.model_validate(NONE | floors), [*known, best], cases)
    assert (reason is not None) == stopped
    if reason:
        assert reason.startswith("stopped early: at best it misses psnr_")
        assert ("without its margin of 1 dB" in reason) == ("psnr_db" in floors or "psnr_worst_prompt_db" in floors)


@pytest.mark.parametrize("name", ["psnr_db", "psnr_worst_prompt_db", "psnr_worst_frame_db", "psnr_worst_block_db"])
def test_no_clip_that_holds_its_floor_is_given_up(tiny_folder: Path, name: str) -> None:
    """The real thing: the bound from the first block against what the whole clip came to."""
    target = _target(tiny_folder)
    stock, _ = target.decode(target.denoise(CASE).latents)
    for policy in (Policy(warmup=1, max_skip=4), Policy(warmup=3, max_skip=2)):
        with run_policy(target.pipe, policy):
            frames, _ = target.decode(target.denoise(CASE).latents)
        whole = floor_figures([compare(stock, frames, target.block_spans(len(frames)))])[name]
        errors = frame_errors(stock[:9], frames[:9])
        assert floor_figures([at_best(errors, target.block_spans(9), len(stock))])[name] >= whole - 1e-9


@pytest.mark.parametrize(
    ("changes", "spans"),
    [
        ({}, [(0, 9), (9, 21), (21, 33)]),
        ({"causal_block_size": 1, "num_frames": 9}, [(0, 1), (1, 5), (5, 9)]),
        # The second window makes its first block anew from frames that are there, and adds two.
        (
            {"num_frames": 57, "base_num_frames": 33, "overlap_history": 9},
            [(0, 9), (9, 21), (21, 33), (33, 45), (45, 57)],
        ),
        # One of the second block's three latent frames is known: that block adds two.
        (
            {"num_frames": 53, "base_num_frames": 33, "overlap_history": 13},
            [(0, 9), (9, 21), (21, 33), (33, 41), (41, 53)],
        ),
    ],
)
def test_a_blocks_frames_are_those_that_its_latent_frames_are_decoded_to(
    tiny_folder: Path, changes: dict[str, Any], spans: list[tuple[int, int]]
) -> None:
    target = _target(tiny_folder, **changes)
    frames = spans[-1][1]
    assert target.block_spans(frames) == spans
    assert target.block_spans(spans[1][1]) == spans[:2]
    whole = torch.randn(1, 16, (frames - 1) // 4 + 1, 2, 2, generator=torch.Generator().manual_seed(0))
    stock, _ = target.decode(whole)
    assert len(stock) == frames
    for start, end in spans:
        changed = whole.clone()
        # The decoder is causal: a frame shows nothing of latent frames behind it.
        changed[:, :, (start + 3) // 4 : (end + 3) // 4] += 3.0
        errors = frame_errors(stock, target.decode(changed)[0])
        assert (errors[:start] == 0).all()
        assert (errors[start:end] > 0).all()


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
        assert row.reason.startswith("stopped early: at best it misses psnr_db by")
        assert row.reason.endswith("(floor 99 dB without its margin of 1 dB), in the first 9 of 33 frames")
        assert row.metrics is not None
        assert row.metrics[BLOCKS] == 1
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
    monkeypatch.setattr(Measure, "run", lambda *_: pytest.fail("it was generated again"))
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
