"""Looking ahead: what the pipeline's own schedulers come to, bit for bit, and nothing of theirs touched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from calibrate.families.lookahead import Lookahead, SchedulerLookahead
from scope_runtime import Policy, Schedule, run_policy
from scope_runtime.policy import Mode
from tests.tiny import CALL, latents, tiny_pipeline

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS: dict[str, Any] = {
    "UniPC": lambda: UniPCMultistepScheduler(**FLOW),
    "UniPC of order 3": lambda: UniPCMultistepScheduler(**FLOW, solver_order=3),
    "DPM++": lambda: DPMSolverMultistepScheduler(**FLOW),
    "Euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
}
STEPS, FRAMES = 8, 2
SHAPE = (3, 4, FRAMES, 2, 2)
"""Three clips, four channels."""
SHARES = {"cond": CALL["guidance_scale"], "uncond": 1 - CALL["guidance_scale"]}


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Clips:
    """Latents that copies of a scheduler step frame by frame, as the pipeline does."""

    def __init__(self, scheduler: Any) -> None:
        self.frames = [copy.deepcopy(scheduler) for _ in range(FRAMES)]
        self.latents = noise(0, *SHAPE)

    def step(self, output: torch.Tensor) -> None:
        for number, scheduler in enumerate(self.frames):
            timestep = scheduler.timesteps[scheduler.step_index or 0]
            moved = scheduler.step(output[:, :, number], timestep, self.latents[:, :, number], return_dict=False)[0]
            self.latents[:, :, number] = moved


@pytest.fixture(params=[*SCHEDULERS.values()], ids=[*SCHEDULERS])
def scheduler(request: pytest.FixtureRequest) -> Any:
    made = request.param()
    made.set_timesteps(STEPS)
    return made


def looked_at(clips: Clips, ahead: Lookahead, begun: int, outputs: torch.Tensor) -> torch.Tensor:
    """Where the clips' states lead from their next step on to the last."""
    return ahead.ahead(range(FRAMES), clips.latents, range(begun, STEPS), outputs)


@pytest.mark.parametrize("begun", [0, 1, 3, 7])
def test_constant_outputs_lead_where_the_frames_own_schedulers_lead(scheduler: Any, begun: int) -> None:
    with SchedulerLookahead.of(scheduler, SHARES) as ahead:
        clips = Clips(scheduler)
        ahead.begin(FRAMES)
        for step in range(begun):
            clips.step(noise(1 + step, *SHAPE))
        steps = STEPS - begun
        outputs = noise(99, 2, *SHAPE)
        found = looked_at(clips, ahead, begun, outputs)
        again = looked_at(clips, ahead, begun, outputs)
    assert torch.equal(found, again)
    for _ in range(steps):
        clips.step(outputs[1])
    assert torch.equal(found[1], clips.latents)
    assert not torch.equal(found[0], found[1])


def test_looking_changes_nothing(scheduler: Any) -> None:
    with SchedulerLookahead.of(scheduler, SHARES) as ahead:
        looking = Clips(scheduler)
        ahead.begin(FRAMES)
        for step in range(STEPS):
            looked_at(looking, ahead, step, noise(50 + step, 3, *SHAPE))
            looking.step(noise(1 + step, *SHAPE))
    other = Clips(scheduler)
    for step in range(STEPS):
        other.step(noise(1 + step, *SHAPE))
    assert torch.equal(looking.latents, other.latents)


def test_the_end_is_affine_in_a_constant_output(scheduler: Any) -> None:
    with SchedulerLookahead.of(scheduler, SHARES) as ahead:
        clips = Clips(scheduler)
        ahead.begin(FRAMES)
        for step in range(2):
            clips.step(noise(1 + step, *SHAPE))
        base, one, two = noise(5, *SHAPE), noise(6, *SHAPE), noise(7, *SHAPE)
        mixed = base + 0.75 * one - 0.25 * two
        found = looked_at(clips, ahead, 2, torch.stack([base, base + one, base + two, mixed]))
    expected = found[0] + 0.75 * (found[1] - found[0]) - 0.25 * (found[2] - found[0])
    torch.testing.assert_close(found[3], expected, atol=1e-5, rtol=1e-4)
    assert (found[1] - found[0]).abs().max() > 1e-2


def test_the_scheduler_is_left_alone(scheduler: Any) -> None:
    before = set(vars(scheduler))
    with SchedulerLookahead.of(scheduler, SHARES):
        made = copy.deepcopy(scheduler)
    assert set(vars(scheduler)) == set(vars(made)) == before
    assert type(made) is type(scheduler)
    assert made.timesteps is not scheduler.timesteps
    with pytest.raises(RuntimeError, match="stop"), SchedulerLookahead.of(scheduler, SHARES):
        raise RuntimeError("stop")
    assert set(vars(scheduler)) == before


RECOMPUTED_ONCE = tuple(
    "".join("R" if row == 2 * block else "P" if 0 < row - 2 * block < 8 else "." for block in range(3))
    for row in range(12)
)
"""For `CALL`: every block at its first update alone."""


class Constant:
    """Hands over the outputs of a block's first recompute for good, and notes where that should lead."""

    def __init__(self, ahead: Lookahead) -> None:
        self.ahead = ahead
        self.first: dict[tuple[int, str], torch.Tensor] = {}
        self.expected: dict[int, torch.Tensor] = {}

    def begin(self, schedule: Schedule) -> None:
        self.width = schedule.block_frames
        self.ahead.begin(schedule.blocks * schedule.block_frames)

    def hand_over(
        self,
        row: int,
        branch: str,
        modes: Mapping[int, Mode],
        outputs: Mapping[int, torch.Tensor],
        state: Callable[[int], torch.Tensor],
    ) -> dict[int, torch.Tensor]:
        for block in modes:
            self.first.setdefault((block, branch), outputs[block] if block in outputs else torch.empty(0))
            if branch == "uncond" and block not in self.expected:
                cond, uncond = (self.first[block, name] for name in ("cond", "uncond"))
                guided = uncond + CALL["guidance_scale"] * (cond - uncond)
                frames = range(block * self.width, (block + 1) * self.width)
                self.expected[block] = self.ahead.ahead(
                    frames, state(block), range(CALL["num_inference_steps"]), guided[None]
                )[0]
        return {block: self.first[block, branch] for block in modes}


@pytest.mark.parametrize("name", ["UniPC", "DPM++"])
def test_it_sees_the_schedulers_of_a_running_pipeline(name: str) -> None:
    pipe = tiny_pipeline()
    pipe.scheduler = SCHEDULERS[name]()
    stock = latents(pipe)
    with SchedulerLookahead.of(pipe.scheduler, SHARES) as ahead:
        pilot = Constant(ahead)
        with run_policy(pipe, Policy(plan=RECOMPUTED_ONCE), pilot=pilot):
            found = latents(pipe)
    for block, expected in pilot.expected.items():
        assert torch.equal(found[:, :, 3 * block : 3 * block + 3], expected)
    assert len(pilot.expected) == 3
    assert "__deepcopy__" not in vars(pipe.scheduler)
    assert torch.equal(latents(pipe), stock)
