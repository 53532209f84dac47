"""What makes exported figures worth believing: intervals, repeated times, further scores, and checking them again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from calibrate.errors import CalibrateError
from calibrate.export.recheck import recheck
from calibrate.families.rounding import EXACT_MULTIPLE
from calibrate.measure import timing
from calibrate.quality import scores
from calibrate.quality.metrics import METRIC_VERSION, Frames, interval
from calibrate.quality.perceptual import vbench
from calibrate.quality.scores import Scores, vmaf_program
from calibrate.spec.generation import Case
from calibrate.spec.running import Score, Timing
from tests.calibrate.conftest import Workplace

EVIDENCE = {
    "speedup_evaluations": 3.0,
    "speedup_denoise": 2.5,
    "metric_version": METRIC_VERSION,
    "psnr_db": 36.0,
    "psnr_worst_frame_db": 28.0,
    "ssim": 0.98,
    "exact": {"max_abs_diff": 1e-5, "stock_rounding": 1e-5, "holds": True},
    "hardware": {"cpu_count": 2},
    "versions": {"torch": "2.13.0"},
    "content": {"vae": "a"},
}
HERE = {name: EVIDENCE[name] for name in ("hardware", "versions", "content")}


def test_an_interval_holds_the_mean_and_narrows_with_more_values() -> None:
    chance = np.random.default_rng(0)
    few, many = (chance.normal(40, 2, size=n).tolist() for n in (5, 100))
    widths = []
    for values in (few, many):
        ends = interval(values)
        assert ends["mean_low"] < np.mean(values) < ends["mean_high"]
        widths.append(ends["mean_high"] - ends["mean_low"])
    assert widths[1] < widths[0]
    assert interval([40.0]) == {}
    assert interval([40.0, 40.0]) == {"mean_low": 40.0, "mean_high": 40.0}


def test_equal_figures_hold_and_better_ones_too() -> None:
    checked = recheck(EVIDENCE, EVIDENCE | {"psnr_db": 50.0}, HERE)
    assert checked["holds"]
    assert checked["differs"] == {}


def test_a_figure_that_fell_behind_is_named_with_how_far() -> None:
    here = {"hardware": {"cpu_count": 4}, "versions": {"torch": "2.14.0"}, "content": {"vae": "b"}}
    checked = recheck(EVIDENCE, EVIDENCE | {"psnr_db": 33.0}, here)
    assert not checked["holds"]
    (fallen,) = [entry for entry in checked["figures"] if not entry["holds"]]
    assert (fallen["figure"], fallen["recorded"], fallen["measured"]) == ("psnr_db", 36.0, 33.0)
    assert checked["differs"] == {
        "hardware.cpu_count": [2, 4], "versions.torch": ["2.13.0", "2.14.0"], "content.vae": ["a", "b"],
    }  # fmt: skip


@pytest.mark.parametrize(("difference", "rounding", "holds"), [(0.01, 0.005, True), (2e-5, 1e-6, False)])
def test_exact_mode_is_held_against_what_rounding_does_here(difference: float, rounding: float, holds: bool) -> None:
    """A machine or a prompt that amplifies rounding also does so to stock."""
    exact = {"max_abs_diff": difference, "stock_rounding": rounding, "holds": difference <= EXACT_MULTIPLE * rounding}
    checked = recheck(EVIDENCE, EVIDENCE | {"exact": exact}, HERE)
    assert checked["holds"] == holds
    old = EVIDENCE | {"exact": {"max_abs_diff": 1e-5}}
    old.pop("content")
    assert recheck(old, EVIDENCE | {"exact": exact}, HERE)["holds"] == holds
    assert recheck(old, EVIDENCE, HERE)["differs"] == {}


def test_figures_that_meant_something_else_are_not_compared_and_the_others_are() -> None:
    old = {name: value for name, value in EVIDENCE.items() if name != "metric_version"}
    checked = recheck(old, EVIDENCE | {"psnr_db": 33.0, "psnr_worst_frame_db": 20.0}, {})
    assert checked["not_comparable"] == dict.fromkeys(
        ("psnr_db", "psnr_worst_prompt_db"), "mean of frame PSNR, before version 2"
    )
    compared = {entry["figure"]: entry["holds"] for entry in checked["figures"]}
    assert "psnr_db" not in compared
    assert (compared["psnr_worst_frame_db"], compared["ssim"]) == (False, True)
    # What was not compared cannot be said to hold, so that no pipeline deploys by it.
    assert not recheck(old, EVIDENCE, {})["holds"]
    assert recheck(EVIDENCE, EVIDENCE, {})["not_comparable"] == {}


class TestTiming:
    @pytest.fixture
    def repeat(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        """Runs the repeats on two cases whose first times are given, with repeats that take the given seconds."""
        monkeypatch.setattr(
            timing.dataclasses, "replace", lambda pair, **changes: SimpleNamespace(**vars(pair) | changes)
        )

        def run(first: tuple[float, float], later: list[float], limit: int) -> Any:
            report = SimpleNamespace(stock_evaluations=100, evaluations=100)
            pairs = [
                SimpleNamespace(
                    case=None,
                    stock_seconds=s,
                    exact_seconds=1.0,
                    scope_seconds=1.0,
                    exact_report=report,
                    scope_report=report,
                )
                for s in first
            ]

            def times(_case: Case) -> dict[str, float]:
                return {"stock": later.pop(0), "exact": 1.0, "scope": 1.0}

            narrator = SimpleNamespace(say=lambda _: None)
            return timing.repeat_until_steady(pairs, times, Timing(max_repeats=limit), narrator)  # type: ignore[arg-type]

        return run

    def test_times_that_agree_are_not_taken_again(self, repeat: Callable[..., Any]) -> None:
        _, steadiness = repeat((1.0, 1.05), [], 4)
        assert steadiness.steady
        assert steadiness.samples == 2

    def test_times_are_taken_again_until_they_agree(self, repeat: Callable[..., Any]) -> None:
        later = [1.0] * 60
        pairs, steadiness = repeat((1.5, 1.0), later, 60)
        assert steadiness.steady
        assert 2 < steadiness.samples < 60
        assert 1.0 < pairs[0].stock_seconds < 1.1

    def test_at_the_limit_they_are_said_to_vary(self, repeat: Callable[..., Any]) -> None:
        _, steadiness = repeat((3.0, 1.0), [1.0, 3.0], 2)
        assert not steadiness.steady
        assert steadiness.samples == 4
        assert steadiness.to_dict()["variation"]["stock"] > 0.1


@pytest.fixture(scope="module")
def clip() -> Frames:
    """Smooth noise that drifts, [4, 192, 192, 3] in [0, 1]."""
    texture = np.kron(np.random.default_rng(0).random((24, 24, 3)), np.ones((8, 8, 1)))
    return np.stack([np.roll(texture, t, axis=1) for t in range(4)]).astype(np.float32)


def brightness(prompt: str, frames: Frames, *, plus: float = 0.0) -> float:
    return float(frames.mean()) + plus


def difference(reference: Frames, frames: Frames) -> float:
    return float(np.abs(reference - frames).mean())


def broken(prompt: str, frames: Frames) -> float:
    return float("nan")


def test_a_studys_own_scores_are_called_by_name(clip: Frames) -> None:
    own = Scores(
        [
            Score(name="bright", function=f"{__name__}:brightness", options={"plus": 1.0}),
            Score(name="apart", function=f"{__name__}:difference", of="pair"),
        ]
    )
    found = own.measure("a prompt", clip, clip * np.float32(0.5))
    assert found["bright"] == pytest.approx(1 + clip.mean() / 2, abs=1e-4)
    assert found["bright_stock"] == pytest.approx(1 + clip.mean(), abs=1e-4)
    assert found["apart"] == pytest.approx(clip.mean() / 2, abs=1e-4)
    assert 0 < found["ms_ssim"] < 1


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("nowhere.at_all:score", "cannot be loaded"),
        (f"{__name__}:missing", "cannot be loaded"),
        (f"{__name__}:broken", "no finite number"),
        ("calibrate.quality.perceptual:lpips", "scope-calibrate\\[lpips\\]"),
    ],
)
def test_a_score_that_cannot_be_had_is_one_sentence(clip: Frames, function: str, sentence: str) -> None:
    if "perceptual" in function:
        pytest.importorskip("torch")
        try:
            import lpips  # noqa: F401
        except (ImportError, RuntimeError):
            pass
        else:
            pytest.skip("lpips is installed")
    of = "pair" if "perceptual" in function else "clip"
    options = {"weights": "nowhere.safetensors"} if of == "pair" else {}
    with pytest.raises(CalibrateError, match=sentence):
        Scores([Score(name="s", function=function, of=of, options=options)]).measure("p", clip, clip)


class TestVBench:
    """VBench itself is not installed here: a stand-in is told what to measure and writes results as VBench does."""

    @pytest.fixture
    def score(self) -> Scores:
        options = {"dimension": "imaging_quality", "weights": "vbench"}
        return Scores([Score(name="imaging", function="calibrate.quality.perceptual:vbench", options=options)])

    @pytest.fixture
    def weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        # Put back what the score sets for VBench.
        monkeypatch.setenv("VBENCH_CACHE_DIR", "")
        file = tmp_path / "vbench/pyiqa_model/musiq_spaq_ckpt-358bb6af.pth"
        file.parent.mkdir(parents=True)
        file.touch()
        return file

    def test_it_measures_a_clip_of_the_users_own(
        self, score: Scores, clip: Frames, weights: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class VBench:
            def __init__(self, device: str, info: str, results: str) -> None:
                self.results = Path(results)
                self.results.mkdir()

            def evaluate(self, videos_path: str, name: str, dimension_list: list[str], **options: Any) -> None:
                assert os.environ["VBENCH_CACHE_DIR"] == str(weights.parents[1])
                assert options["mode"] == "custom_input"
                ((path, prompt),) = options["prompt_list"].items()
                assert prompt == "a prompt"
                assert Path(path).parent == Path(videos_path)
                with av.open(path) as video:
                    frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
                assert len(frames) == len(clip)
                result = {dimension_list[0]: [float(np.mean(frames)) / 255, []]}
                (self.results / f"{name}_eval_results.json").write_text(json.dumps(result))

        monkeypatch.setitem(sys.modules, "vbench", SimpleNamespace(VBench=VBench))
        found = score.measure("a prompt", clip, clip * np.float32(0.5))
        assert found["imaging"] == pytest.approx(clip.mean() / 2, abs=0.01)
        assert found["imaging_stock"] == pytest.approx(clip.mean(), abs=0.01)

    def test_what_is_missing_is_named(
        self, score: Scores, clip: Frames, weights: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "vbench", None)
        with pytest.raises(CalibrateError, match="needs the package vbench"):
            score.measure("p", clip, clip)
        weights.unlink()
        with pytest.raises(CalibrateError, match="musiq_spaq_ckpt-358bb6af.pth in the folder vbench"):
            score.measure("p", clip, clip)
        with pytest.raises(CalibrateError, match="choose one of subject_consistency"):
            vbench("p", clip, dimension="color", weights="vbench")


def test_small_frames_have_no_ms_ssim(clip: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "vmaf_program", lambda: None)
    small = clip[:, :64, :64]
    assert Scores().measure("p", small, small) == {}


@pytest.mark.skipif(vmaf_program() is None, reason="no ffmpeg with libvmaf: pip install scope-calibrate[vmaf]")
def test_vmaf_prefers_the_better_clip(clip: Frames) -> None:
    noisy = np.clip(clip + np.random.default_rng(1).normal(0, 0.2, clip.shape), 0, 1).astype(np.float32)
    same, worse = (Scores().measure("p", clip, candidate)["vmaf"] for candidate in (clip, noisy))
    assert worse < same <= 100


def test_the_studys_scores_are_in_the_evidence(make_workplace: Callable[..., Workplace]) -> None:
    from scope_runtime import Profile

    workplace = make_workplace(
        name="scored",
        budget={"trials": 1},
        floors={"psnr_db": None, "psnr_worst_prompt_db": None},
        quality={"scores": [{"name": "bright", "function": f"{__name__}:brightness"}]},
    )
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output
    evidence = Profile.load(workplace.folder / "profiles/scored.json").evidence
    assert 0 < evidence["scores"]["bright"] < 1
    assert evidence["cases"][0]["bright_stock"] > 0
    assert evidence["timing"]["samples"] >= 2
    assert (
        evidence["metrics"]["psnr_db"]["mean_low"] <= evidence["psnr_db"] <= evidence["metrics"]["psnr_db"]["mean_high"]
    )
