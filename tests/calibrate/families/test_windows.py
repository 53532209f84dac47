"""Frames of a study: what the pipeline cannot run, or would run as something else, is refused with what works."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from calibrate.errors import CalibrateError
from calibrate.families.skyreels_v2.windows import windows_of
from calibrate.spec.generation import Generation
from scope_runtime import Profile, apply_scope
from tests.calibrate.conftest import Workplace
from tests.tiny import CALL, latents, tiny_pipeline

LONG = {"num_frames": 45, "base_num_frames": 33, "overlap_history": 9}


def _of(**changes: Any) -> tuple[int, ...]:
    return windows_of(Generation.model_validate(CALL | changes), 4)


@pytest.mark.parametrize(
    ("changes", "field", "values"),
    [
        ({"num_frames": 35}, "num_frames", (33, 45)),
        ({"num_frames": 29}, "num_frames", (33, 21)),
        ({"num_frames": 5}, "num_frames", (9, 21)),
        ({"num_frames": 45, "base_num_frames": 33}, "overlap_history", (9, 21)),
        (LONG | {"base_num_frames": 36}, "base_num_frames", (33, 45)),
        (LONG | {"base_num_frames": 37}, "base_num_frames", (33, 45)),
        (LONG | {"overlap_history": 12}, "overlap_history", (9, 21)),
        (LONG | {"overlap_history": 5}, "overlap_history", (9, 21)),
        (LONG | {"overlap_history": 33}, "overlap_history", (29, 21)),
        (LONG | {"overlap_history": 41}, "overlap_history", (29, 21)),
        (LONG | {"num_frames": 61}, "num_frames", (57, 69)),
        (LONG | {"num_frames": 65}, "num_frames", (69, 57)),
    ],
)
def test_what_cannot_run_is_refused_with_the_nearest_values_that_can(
    changes: dict[str, Any], field: str, values: tuple[int, ...]
) -> None:
    with pytest.raises(CalibrateError) as refused:
        _of(**changes)
    message = str(refused.value)
    assert message.startswith(f"generation.{field}: ")
    assert tuple(int(value) for value in re.findall(r"\d+", message.rpartition("set it to")[2])) == values
    for value in values:
        # Another field may be wrong as well, but this one no longer is.
        try:
            _of(**changes | {field: value})
        except CalibrateError as error:
            assert not str(error).startswith(f"generation.{field}: ")  # noqa: PT017 - it may also pass


def test_windows_are_those_of_the_pipeline_and_all_frames_are_denoised() -> None:
    """Every setting that is let pass runs, in the windows that were said, and none of its frames is left as noise."""
    pipe = tiny_pipeline()
    embeds, _ = pipe.encode_prompt("a red circle", max_sequence_length=4)
    settings = itertools.product((9, 21, 45, 57, 61), (21, 33), (None, 9, 13, 17, 29), (1, 3))
    seen = 0
    for frames, base, overlap, block in settings:
        changes = {
            "num_frames": frames, "base_num_frames": base, "overlap_history": overlap, "causal_block_size": block,
        }  # fmt: skip
        try:
            said = _of(**changes)
        except CalibrateError:
            continue
        seen += 1
        plans: list[Any] = []
        plan = pipe.generate_timestep_matrix

        def planned(*args: Any, plans: list[Any] = plans, plan: Any = plan) -> Any:
            plans.append((args[0], found := plan(*args)))
            return found

        pipe.generate_timestep_matrix = planned
        try:
            made = pipe(
                prompt=None, prompt_embeds=embeds, guidance_scale=1.0, height=16, width=16, num_inference_steps=2,
                ar_step=1, output_type="latent", **changes,
            ).frames  # fmt: skip
        finally:
            del pipe.generate_timestep_matrix
        assert tuple(count for count, _ in plans) == said
        assert made.shape[2] == (frames - 1) // 4 + 1
        for count, (matrix, index, update, _) in plans:
            assert matrix.shape[1] == count
            ready = index[0] == 3  # two steps, and the clean one after them
            assert torch.all(update.any(dim=0) | ready)
    assert seen > 20


def test_a_short_last_window_gives_a_profile_that_works(make_workplace: Callable[..., Workplace]) -> None:
    workplace = make_workplace(
        generation=CALL | LONG, budget={"trials": 1}, floors={"psnr_db": None, "psnr_worst_prompt_db": None}
    )
    assert _of(**LONG) == (9, 6)
    result = workplace.scope("run", "study.yaml")
    assert result.exit_code == 0, result.output
    profile = Profile.load(workplace.folder / "profiles/tiny.json")
    assert (profile.settings.num_frames, profile.settings.last_num_frames) == (33, 21)
    pipe = tiny_pipeline()
    with apply_scope(pipe, profile, on_mismatch="raise") as scope:
        latents(pipe, **LONG)
    assert scope.report.speedup_evaluations == pytest.approx(profile.evidence["speedup_evaluations"])
    assert [window.note for window in scope.report.windows] == ["", ""]
