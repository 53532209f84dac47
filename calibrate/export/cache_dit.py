"""A profile as a configuration of cache-dit, for who can use nothing else: which steps are computed, and no more.

cache-dit's `steps_computation_mask` says for each step whether the transformer's blocks are computed. That is a frozen
plan where a window is one block; where blocks stand at different noise levels, it is not.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from calibrate.errors import CalibrateError
from calibrate.files import read_text, write_atomically
from calibrate.study.study_file import StudyFile
from scope_runtime import Mode, Policy, Profile, Schedule, plan_of
from scope_runtime.errors import named
from scope_runtime.families import family_of
from scope_runtime.policy import LETTERS
from scope_runtime.schedule import NOISE_LEVEL_AXIS

FORMAT = "cache-dit"

_FIRST_LINE = "# Written by scope-calibrate for cache-dit; it is read by cache_dit.load_configs.\n"
_UNMEASURED = "Its quality was not measured with cache-dit: the profile's figures are those of scope_runtime."
_MOST_BYTES = 1 << 20


def convert(source: str, output: Path | None) -> Path:
    """Writes a profile, or the one that a study exported, as a YAML file for cache-dit.

    Args:
        source: A profile (a path or an address on the Hub) or a study file.
        output: Where; else beside the profile, or here for one on the Hub.

    Raises:
        CalibrateError: Naming what of the profile cache-dit has no place for, or a file that is in the way.
        ProfileError: If the profile cannot be read.
    """
    if source.endswith((".yaml", ".yml")):
        source = str(StudyFile(Path(source)).study.profile_path)
        if not Path(source).exists():
            raise CalibrateError(f"--format: {source} is not there yet; run or export the study first.")
    folder = Path() if "://" in source else Path(source).parent
    path = output or folder / f"{Path(source).stem}.{FORMAT}.yaml"
    text = configuration(Profile.load(source), source)
    if os.path.lexists(path) and not _is_ours(path):
        raise CalibrateError(f"--output: {path} is there already and was not written by this; choose another path.")
    write_atomically(path, text.encode())
    return path


def configuration(profile: Profile, name: str) -> str:
    """The YAML that `cache_dit.load_configs` reads, with what it does not keep of the profile as comments.

    Args:
        profile: Of a family whose windows are one block.
        name: The profile's, for the comments.

    Raises:
        CalibrateError: Naming what of the profile cache-dit has no place for.
    """
    plan = _plan(profile)
    mask = [1 if row == LETTERS[Mode.RECOMPUTE] else 0 for row in plan]
    policy, guided = profile.policy, profile.settings.guidance_scale > 1
    predicts = policy.order > 0 and LETTERS[Mode.PREDICT] in plan
    settings = {
        "num_inference_steps": len(mask),
        "steps_computation_mask": mask,
        "steps_computation_policy": "static",
        # The next window begins anew; what is counted there are calls of the transformer, one per guidance branch.
        "enable_separate_cfg": guided,
        "force_refresh_step_hint": len(mask) * (2 if guided else 1),
        "force_refresh_step_policy": "repeat",
        "Fn_compute_blocks": 1,  # the fewest that it can do with
        "Bn_compute_blocks": 0,
        "enable_taylorseer": predicts,
        **({"taylorseer_order": policy.order} if predicts else {}),
    }
    lines = [f"From {named(Path(name).name)}.", _UNMEASURED, *_lost(policy, plan, predicts)]
    comments = "".join(f"# {line}\n" for line in lines)
    return _FIRST_LINE + comments + yaml.safe_dump({"cache_config": settings}, sort_keys=False, default_flow_style=None)


def _plan(profile: Profile) -> tuple[str, ...]:
    """One letter per step."""
    _refuse(profile)
    scheduler = profile.settings.scheduler
    if len(scheduler.sigmas) != profile.settings.num_inference_steps + 1:
        raise CalibrateError(
            "--format: the profile does not hold its noise levels (settings.scheduler.sigmas); export it again."
        )
    schedule = Schedule.of_one_block(scheduler.sigmas[:-1], profile.settings.causal_block_size)
    plan = plan_of(profile.policy, schedule)
    assert plan is not None  # no content is needed
    return plan


def _refuse(profile: Profile) -> None:
    """Refuses what a mask over steps cannot say."""
    policy, family = profile.policy, family_of([profile.model.pipeline])
    if family is None or not family.one_block:
        raise CalibrateError(
            f"--format: windows of {family.what if family else named(profile.model.pipeline)} have several blocks at "
            "noise levels of their own, which one mask over steps cannot tell apart; use scope_runtime."
        )
    if policy.first_window is not None:
        raise CalibrateError(
            "--format: the first window has rules of its own (policy.first_window), where cache-dit has one mask for "
            "all; search without first_window, or use scope_runtime."
        )
    if policy.gap_weights is not None:
        raise CalibrateError(
            "--format: the plan was chosen with learned weights (policy.gap_weights), and cache-dit has no place for "
            "them, so that they would be lost; export a policy of thresholds, or use scope_runtime."
        )
    by_content = [name for name in ("magnitude_bound", "error_budget") if getattr(policy, name) is not None]
    if policy.needs_content:
        by_content.append("indicator")
    if by_content:
        raise CalibrateError(
            f"--format: with policy.{by_content[0]} what is computed depends on the clip, so there is no frozen plan; "
            "export a policy that goes by noise levels alone, or use scope_runtime."
        )


def _lost(policy: Policy, plan: tuple[str, ...], predicts: bool) -> list[str]:
    """What cache-dit does otherwise, one sentence each."""
    lost = [
        "What is skipped is all but the first of the transformer's blocks, not the whole model, and what is reused or "
        "predicted is their residual, not the model's output."
    ]
    if predicts and policy.axis == NOISE_LEVEL_AXIS:
        lost.append("Skipped steps are predicted over steps; the profile does it over noise levels.")
    if predicts and LETTERS[Mode.CACHE] in plan:
        lost.append("All skipped steps are predicted; the profile uses some outputs as they are.")
    if predicts and policy.max_step_ratio is not None:
        lost.append("The order of the prediction stays; the profile lowers it after long gaps (policy.max_step_ratio).")
    lost.append("Outputs that are not finite are reused, and other models and settings are taken without a word.")
    return lost


def _is_ours(path: Path) -> bool:
    try:
        return read_text(path, _MOST_BYTES).startswith(_FIRST_LINE)
    except (OSError, UnicodeDecodeError):
        return False
