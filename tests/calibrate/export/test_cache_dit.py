"""Profiles for cache-dit, read by cache-dit itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cache_dit
import pytest
import yaml
from diffusers import HeliosPipeline

from calibrate.errors import CalibrateError
from calibrate.export.cache_dit import configuration, convert
from scope_runtime import GapWeights, ModelIdentity, Policy, Profile, Settings, run_policy
from tests.calibrate.conftest import Workplace
from tests.chunked import HELIOS_CALL, helios_latents, tiny_framepack, tiny_helios, undecoded
from tests.scope_runtime.test_profile import EVIDENCE, make_profile
from tests.tiny import tiny_pipeline

POLICY = Policy(warmup=2, max_skip=1, predict_threshold=10.0)
PLAN = [1, 1, 0, 1, 0, 1]


def profile_of(pipe: Any, policy: Policy = POLICY, **call: Any) -> Profile:
    settings = Settings.of(pipe, **(HELIOS_CALL | call))
    return Profile(policy, settings, ModelIdentity.of(pipe), EVIDENCE)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return profile_of(tiny_helios())


@pytest.fixture
def _unpatched() -> Iterator[None]:
    """cache-dit patches the pipeline's class as well."""
    before = dict(vars(HeliosPipeline))
    yield
    for name in vars(HeliosPipeline).keys() - before.keys():
        delattr(HeliosPipeline, name)
    HeliosPipeline.__call__ = before["__call__"]


@pytest.mark.usefixtures("_unpatched")
@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_cache_dit_computes_the_steps_that_the_runtime_computes(guidance: float, tmp_path: Path) -> None:
    """In every chunk and clip anew, and in each guidance branch: counted at the last of the transformer's blocks."""
    pipe = undecoded(tiny_helios())
    profile_of(pipe, guidance_scale=guidance).save(tmp_path / "helios.json")
    path = convert(str(tmp_path / "helios.json"), None)
    assert path == tmp_path / "helios.cache-dit.yaml"
    loaded = cache_dit.load_configs(str(path))
    assert loaded["cache_config"].steps_computation_mask == PLAN
    assert loaded["calibrator_config"].taylorseer_order == POLICY.order == 1
    first, last = pipe.transformer.blocks
    computed: list[int] = []  # of every call of the transformer, all of which compute the first block
    first.register_forward_pre_hook(lambda *_: computed.append(0))
    last.register_forward_pre_hook(lambda *_: computed.append(computed.pop() + 1))
    cache_dit.enable_cache(pipe, **loaded)
    for seed in range(2):
        helios_latents(pipe, guidance_scale=guidance, seed=seed, num_frames=66)
    cache_dit.disable_cache(pipe)
    assert computed == [step for step in PLAN for _ in range(2 if guidance > 1 else 1)] * 2 * 2


def test_the_mask_is_what_the_runtime_did(profile: Profile) -> None:
    pipe = undecoded(tiny_helios())
    with run_policy(pipe, profile.policy) as scope:
        helios_latents(pipe, num_frames=33)
    assert [int(letter == "R") for letter in scope.report.modes] == PLAN


def test_the_file_says_that_its_quality_is_not_known_and_what_is_lost(profile: Profile) -> None:
    text = configuration(profile, "profiles/helios.json")
    assert "Its quality was not measured with cache-dit" in text
    assert "the profile does it over noise levels" in text
    over_steps = configuration(dataclasses.replace(profile, policy=dataclasses.replace(POLICY, axis="step")), "a.json")
    assert "over noise levels" not in over_steps


def test_cached_steps_need_no_prediction(profile: Profile) -> None:
    cached = dataclasses.replace(POLICY, cache_threshold=10.0)
    config = cache_dit.load_configs(_written(dataclasses.replace(profile, policy=cached)))
    assert config["cache_config"].steps_computation_mask == PLAN
    assert config.get("calibrator_config") is None


def _written(profile: Profile) -> dict[str, Any]:
    return yaml.safe_load(configuration(profile, "a\nsteps: 1.json"))


def test_a_frozen_plan_is_taken_as_it_is(profile: Profile) -> None:
    plan = Policy(plan=("R", "P", "R", "P", "P", "R"))
    mask = _written(dataclasses.replace(profile, policy=plan))["cache_config"]["steps_computation_mask"]
    assert mask == [1, 0, 1, 0, 0, 1]


def _learned(profile: Profile) -> Policy:
    plan = ("R", "R", "R", "P", "R", "R")
    table = {(kind, step, branch): (1.0,) for kind in (0,) for step in range(6) for branch in ("cond", "uncond")}
    weights = GapWeights.fitted(plan, profile.settings, depth=1, classes=(0,), weights=table)
    return Policy(plan=plan, gap_weights=weights)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (lambda _: Policy(first_window=Policy(warmup=3)), "policy.first_window"),
        (_learned, "policy.gap_weights.*would be lost"),
        (lambda _: Policy(indicator="modulated-input"), "policy.indicator"),
        (lambda _: Policy(magnitude_bound=0.5), "policy.magnitude_bound"),
        (lambda _: Policy(error_budget=0.5), "policy.error_budget"),
    ],
)
def test_what_a_mask_cannot_say_is_refused_by_name(
    profile: Profile, policy: Callable[[Any], Policy], said: str
) -> None:
    with pytest.raises(CalibrateError, match=said):
        configuration(dataclasses.replace(profile, policy=policy(profile)), "a.json")


def test_families_of_several_blocks_are_refused_and_those_of_one_are_not() -> None:
    with pytest.raises(CalibrateError, match="SkyReels-V2 .* have several blocks"):
        configuration(make_profile(tiny_pipeline()), "a.json")
    pipe = tiny_framepack()
    call = {"prompt_template": {"template": "{}", "crop_start": 0}, "guidance_scale": 6.0}
    assert _written(profile_of(pipe, **call))["cache_config"]["steps_computation_mask"] == PLAN


def test_the_command_writes_it_and_no_other_file(
    make_workplace: Callable[..., Workplace], profile: Profile, tmp_path: Path
) -> None:
    workplace = make_workplace()
    profile.save(workplace.folder / "helios.json")
    command = ["export", "helios.json", "--format", "cache-dit"]
    for _ in range(2):  # it replaces its own file
        written = workplace.scope(*command)
        assert written.exit_code == 0, written.output
    assert "steps_computation_mask: [1, 1, 0, 1, 0, 1]" in (workplace.folder / "helios.cache-dit.yaml").read_text()
    for arguments, said in (
        ([*command, "--output", "study.yaml"], "study.yaml is there already"),
        (["export", "study.yaml", "--format", "cache-dit"], "profiles/tiny.json is not there yet"),
        ([*command, "--rule", "fastest"], "leave out what picks a policy"),
        (["export", "helios.json", "--format", "other"], "write cache-dit"),
    ):
        refused = workplace.scope(*arguments)
        assert refused.exit_code == 2
        assert said in " ".join(refused.stderr.replace("│", " ").split())
