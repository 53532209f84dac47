"""MAGI-1: what is looked at when a generation begins, on the stand-in and on the official code."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scope_runtime import (
    AttachError,
    ProfileMismatch,
    ScopeError,
    ScopeWarning,
    Settings,
    apply_scope,
    exact,
    run_policy,
)
from scope_runtime.adapters.magi_1 import Magi1Attachment
from tests.magi_1 import CHECKOUT, STAND_IN, TWICE, Magi, counted, imported, needs_checkout, profile_of

Make = Callable[..., Magi]
SIZE = {"num_steps": 8, "num_frames": 32}
"""Four chunks of two latent frames, eight updates each."""
WIDE = {"num_steps": 8, "chunk_width": 6, "num_frames": 96}
"""As many frames as the official configurations have: four chunks of six latent frames."""
TEXT = {"caption_channels": 4096, "caption_max_length": 800}
"""The official tokens are of the real T5's width and come before a text of the real length."""


@pytest.fixture(params=["stand-in", pytest.param("official", marks=needs_checkout)])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes small models of either code."""
    if request.param == "stand-in":
        with imported(STAND_IN) as package:
            yield lambda **changes: Magi.stand_in(package, **SIZE | changes)
        return
    from tests.magi_1_official import official, official_model

    with official(Path(str(CHECKOUT))) as package:
        yield lambda **changes: official_model(package, tmp_path, **SIZE | changes)


def seen_by_the_adapter(magi: Magi, **call: Any) -> Settings:
    seen: list[Settings] = []

    def exactly(settings: Settings, *_: Any) -> tuple[None, str]:
        seen.append(settings)
        return None, ""

    attachment = Magi1Attachment(magi.model, exactly)
    try:
        magi.latents(**call)
    finally:
        attachment.detach()
    (settings,) = seen
    return settings


class TestPrefix:
    @pytest.mark.parametrize("prefix", [0, 1, 4, 6, 7])
    @pytest.mark.parametrize("frames", [48, 92, 80])
    def test_settings_are_those_of_the_call(self, make: Make, frames: int, prefix: int) -> None:
        magi = make(**WIDE | {"num_frames": frames, "video_size_h": 36})
        assert seen_by_the_adapter(magi, prefix=prefix) == Settings.of(magi.model, prefix_frames=prefix)

    @pytest.mark.parametrize(("frames", "prefix"), [(92, 1), (80, 1), (80, 4)])
    def test_a_prefix_in_the_last_chunk_is_no_text_to_video(self, make: Make, frames: int, prefix: int) -> None:
        """As many chunks as the calibrated video has, and no call that says that some of it is given."""
        profile = profile_of(make(**WIDE))
        magi = make(**WIDE | {"num_frames": frames})
        stock = magi.latents(prefix=prefix)
        with apply_scope(magi.model, profile) as scope, pytest.warns(ScopeWarning, match="prefix is True"):
            ours = magi.latents(prefix=prefix)
        assert (ours - stock).abs().max() <= 5e-5
        assert set("".join(scope.report.modes)) <= set("RK.")
        with (
            apply_scope(magi.model, profile, on_mismatch="raise"),
            pytest.raises(ProfileMismatch, match=r"settings.prefix"),
        ):
            magi.latents(prefix=prefix)
        assert torch.equal(magi.latents(prefix=prefix), stock)

    def test_frames_that_do_not_fill_the_last_chunk_are_computed_all_the_same(self, make: Make) -> None:
        profile = profile_of(make(**WIDE))
        magi = make(**WIDE | {"num_frames": 92})
        with warnings.catch_warnings(), apply_scope(magi.model, profile) as scope:
            warnings.simplefilter("error", ScopeWarning)
            magi.latents()
        assert "P" in "".join(scope.report.modes)


class TestGuidance:
    @staticmethod
    def halved(model: Any) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
        """A scale of the text that differs from the configuration's only near the end."""
        stock = model.get_cfg_scale

        def scale(t: torch.Tensor, *scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            previous, text = stock(t, *scales)
            return previous, text + 1.0 * (t > 0.5)

        return scale

    def test_another_formula_is_refused(self, make: Make) -> None:
        magi = make()
        stock = magi.latents()
        magi.model.get_cfg_scale = self.halved(magi.model)
        with pytest.raises(AttachError, match="get_cfg_scale"):
            exact(magi.model)
        del magi.model.get_cfg_scale
        assert torch.equal(magi.latents(), stock)

    def test_another_formula_is_noticed_while_attached(self, make: Make) -> None:
        magi = make()
        with apply_scope(magi.model, profile_of(magi)):
            magi.latents()
            magi.model.get_cfg_scale = self.halved(magi.model)
            with pytest.raises(AttachError, match="get_cfg_scale"):
                magi.latents()
            del magi.model.get_cfg_scale
            magi.latents()

    def test_a_dispatcher_that_fails_is_refused_with_what_it_says(self, make: Make) -> None:
        magi = make()
        magi.model.runtime_config.text_scales = [7.5]
        with pytest.raises(AttachError, match="forward_dispatcher fails"):
            exact(magi.model)

    def test_looking_costs_no_evaluation_and_leaves_nothing_behind(self, make: Make) -> None:
        magi = make()
        before = dict(vars(magi.model))
        _, stock_work = counted(magi)
        with exact(magi.model) as scope:
            _, work = counted(magi)
        assert (scope.report.evaluations, scope.report.stock_evaluations) == (work, stock_work)
        assert vars(magi.model) == before

    def test_the_share_of_a_nearly_clean_chunk_is_the_dispatchers(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is no field of the configuration: the official code reads it from the environment."""
        magi = make(cfg_number=1, num_steps=16)
        profile = profile_of(magi)
        with apply_scope(magi.model, profile) as scope:
            magi.latents()
            assert "P" in "".join(scope.report.modes)
            monkeypatch.setenv("prev_chunks_scale", "0.4")
            stock_like = Settings.of(magi.model)
            with pytest.warns(ScopeWarning, match="prev_chunks_scale"):
                ours = magi.latents()
        assert torch.equal(ours, magi.latents()), "one branch is exact bit for bit"
        assert stock_like != profile.settings
        monkeypatch.setenv("prev_chunks_scale", "a lot")
        with pytest.raises(AttachError, match="prev_chunks_scale must be a number"):
            Settings.of(magi.model)
        assert "prev_chunks_scale" not in str(Settings.of(make().model).scheduler), "three branches do not use it"


class TestConditions:
    @pytest.fixture
    def with_text(self, make: Make, request: pytest.FixtureRequest) -> Make:
        official = "official" in request.node.name
        return lambda **changes: make(**(TEXT if official else {}) | {"num_frames": 16} | changes)

    @pytest.mark.parametrize("variable", ["PAD_HQ", "PAD_DURATION", "PAD_STATIC", "NEG_PROMPT"])
    def test_tokens_before_the_prompt_are_settings(
        self, with_text: Make, variable: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        magi = with_text()
        plain = profile_of(magi)
        stock = magi.latents()
        with apply_scope(magi.model, plain) as scope:
            magi.latents()
            assert "P" in "".join(scope.report.modes)
            monkeypatch.setenv(variable, "1")
            with pytest.warns(ScopeWarning, match="special_tokens"):
                ours = magi.latents()
        other = magi.latents()
        assert (other - stock).abs().max() > 1e-3
        assert (ours - other).abs().max() <= 5e-5
        with apply_scope(magi.model, profile_of(magi)) as scope, warnings.catch_warnings():
            warnings.simplefilter("error", ScopeWarning)
            magi.latents()
        assert "P" in "".join(scope.report.modes)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"text_scales": [5.0, 5.0, 5.0, 0.0, 0.0]}, "text_scales"),
            ({"prev_chunk_scales": [1.5, 1.5, 1.5, 1.5, 1.0]}, "prev_chunk_scales"),
            ({"cfg_t_range": [0.0, 0.0217, 0.1, 0.5, 0.999]}, "cfg_t_range"),
            ({"noise2clean_kvrange": [3, 2, 2, 1]}, "noise2clean_kvrange"),
            ({"clean_chunk_kvrange": 2}, "clean_chunk_kvrange"),
            ({"clean_t": 0.9}, "clean_t"),
            ({"window_size": 2}, "ar_step"),
            ({"num_steps": 16}, "num_inference_steps"),
            ({"num_frames": 16}, "num_frames"),
            ({"video_size_w": 64}, "width"),
        ],
    )
    def test_everything_is_looked_at_again_in_every_generation(self, make: Make, changes: Any, said: str) -> None:
        magi = make()
        with apply_scope(magi.model, profile_of(magi)) as scope:
            magi.latents()
            assert "P" in "".join(scope.report.modes)
            vars(magi.model.runtime_config).update(changes)
            with pytest.warns(ScopeWarning, match=said):
                ours = magi.latents()
        assert (ours - magi.latents()).abs().max() <= 5e-5

    @pytest.mark.parametrize(
        ("guidance", "changes", "said"),
        [
            ({"cfg_number": 1, "num_steps": 16}, {"distill_nearly_clean_chunk_threshold": 0.5}, "threshold"),
            ({"cfg_number": 3, "num_steps": 12}, {"shortcut_mode": "16,16,8"}, "shortcut_mode"),
        ],
    )
    def test_the_engine_is_looked_at_too(self, make: Make, guidance: Any, changes: Any, said: str) -> None:
        magi = make(**guidance)
        with apply_scope(magi.model, profile_of(magi)):
            vars(magi.model.engine_config).update(changes)
            with pytest.warns(ScopeWarning, match=said):
                ours = magi.latents()
            vars(magi.model.engine_config).update(pp_size=2)
            with pytest.raises(AttachError, match="pp_size"):
                magi.latents()
            vars(magi.model.engine_config).update(pp_size=1)
        assert (ours - magi.latents()).abs().max() <= 5e-5

    @pytest.mark.parametrize("changes", [{"text_scales": [5.0, 5.0, 5.0, 0.0, 0.0]}, {"cfg_number": 1}])
    def test_a_change_in_the_middle_of_a_generation_is_refused(self, make: Make, changes: Any) -> None:
        magi = make()
        with run_policy(magi.model, TWICE):
            chunks = magi.chunks()
            next(chunks)
            vars(magi.model.runtime_config).update(changes)
            with pytest.raises(ScopeError, match=f"{next(iter(changes))} was changed"):
                next(chunks)
