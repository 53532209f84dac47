"""The error analysis on fields whose constants are known, solved by Euler's method as the bound assumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from scope_runtime.schedule import AXES, Phase, Schedule
from studies.bench.error_bound import Constants, Course, bound, distances, estimate

Field = Callable[[torch.Tensor, float], torch.Tensor]
STEPS = 16


def one_block(steps: int = STEPS, power: float = 1.0) -> Schedule:
    sigma = tuple((1 - (row / steps) ** power,) for row in range(steps))
    return Schedule(sigma=sigma, phase=((Phase.ACTIVE,),) * steps, block_frames=1)


def two_blocks(steps: int = STEPS, lag: int = 3) -> Schedule:
    def at(row: int, block: int) -> tuple[float, Phase]:
        step = row - lag * block
        phase = Phase.WAITING if step < 0 else Phase.COMPLETE if step >= steps else Phase.ACTIVE
        return min(1.0, max(0.0, (steps - step) / steps)), phase

    table = [[at(row, block) for block in range(2)] for row in range(steps + lag)]
    return Schedule(
        sigma=tuple(tuple(s for s, _ in row) for row in table),
        phase=tuple(tuple(p for _, p in row) for row in table),
        block_frames=1,
    )


def solve(schedule: Schedule, field: Field, modes: Sequence[str], axis: str = "noise-level") -> Course:
    """Euler's method with the given modes; a block's output depends on its own latents and its predecessor's."""
    state = torch.randn(schedule.blocks, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    history: list[list[tuple[float, torch.Tensor]]] = [[] for _ in state]
    latents, outputs = [], []
    for row in range(schedule.rows):
        latents.append(state.clone())
        output = torch.zeros_like(state)
        for block in schedule.active(row):
            sigma, position = schedule.sigma[row][block], schedule.position(row, block, axis)
            if modes[row][block] == "R":
                output[block] = field(state[: block + 1].mean(0), sigma)
                history[block] = [(position, output[block].clone()), *history[block][:1]]
            elif modes[row][block] == "P":
                (s0, v0), (s1, v1) = history[block]
                output[block] = v0 + (position - s0) * (v0 - v1) / (s0 - s1)
            else:
                output[block] = history[block][0][1]
        outputs.append(output)
        for block in schedule.active(row):
            state[block] -= schedule.step_size(row, block) * output[block]
    return Course(schedule, modes, torch.stack(latents), torch.stack(outputs))


def plan(schedule: Schedule, letter: str, warmup: int = 3, every: int = 3) -> list[str]:
    """Recompute the first updates of a block and then one in `every`; `letter` in between."""

    def at(row: int, block: int) -> str:
        if schedule.phase[row][block] is not Phase.ACTIVE:
            return "."
        step = schedule.step(row, block)
        return "R" if step < warmup or (step - warmup) % every == every - 1 else letter

    return ["".join(at(row, block) for block in range(schedule.blocks)) for row in range(schedule.rows)]


def constant_growth(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return 0.7 * x + math.sin(3 * sigma)


@pytest.mark.parametrize(
    "schedule", [one_block(), two_blocks(), one_block(power=2)], ids=["one block", "two blocks", "uneven steps"]
)
@pytest.mark.parametrize("letter", ["C", "P"])
@pytest.mark.parametrize("bins", [1, 4])
@pytest.mark.parametrize("axis", AXES)
def test_measured_error_stays_under_the_bound(schedule: Schedule, letter: str, bins: int, axis: str) -> None:
    full = solve(schedule, constant_growth, plan(schedule, "R"))
    skipped = solve(schedule, constant_growth, plan(schedule, letter), axis)
    limit = bound(schedule, skipped.modes, estimate([full], [skipped], bins, axis))[:-1]
    measured = distances(skipped, full)
    assert measured.max() > 1e-4, "the run must err for the bound to mean anything"
    assert (measured <= limit + 1e-12).all()
    # A bound a hundred times too wide would hold as well and say nothing.
    assert limit[-1].max() < 25 * measured[-1].max()


def test_constants_of_a_known_field() -> None:
    schedule = one_block(64)
    full = solve(schedule, lambda x, s: 0 * x + 3 * s * s, plan(schedule, "R"))
    found = estimate([full], [full])
    assert found.first[0] == pytest.approx(6, rel=0.02)  # |d/ds 3 s^2| is 6 at s = 1
    assert found.second[0] == pytest.approx(6, rel=1e-6)
    assert found.growth == (0.0,)
    growing = solve(schedule, lambda x, s: 0.7 * x + s, plan(schedule, "R"))
    skipped = solve(schedule, lambda x, s: 0.7 * x + s, plan(schedule, "C"))
    assert estimate([growing], [skipped]).growth[0] == pytest.approx(0.7, rel=1e-6)


def test_first_order_is_exact_on_a_field_linear_in_the_noise_level() -> None:
    schedule = one_block()

    def linear(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.full_like(x, 2 - 3 * sigma)

    full = solve(schedule, linear, plan(schedule, "R"))
    predicted = solve(schedule, linear, plan(schedule, "P"))
    cached = solve(schedule, linear, plan(schedule, "C"))
    assert distances(predicted, full).max() < 1e-12
    assert distances(cached, full).max() > 0.01
    constants = estimate([full], [predicted])
    assert bound(schedule, predicted.modes, constants).max() < 1e-9
    assert bound(schedule, cached.modes, constants)[:-1].sub(distances(cached, full)).min() >= -1e-12


def test_on_the_step_axis_the_constants_are_derivatives_by_the_step() -> None:
    schedule = one_block(power=2)
    full = solve(schedule, lambda x, s: 0 * x + STEPS * math.sqrt(1 - s), plan(schedule, "R"))  # the step itself
    found = estimate([full], [full], axis="step")
    assert found.first[0] == pytest.approx(1)
    assert found.second[0] == pytest.approx(0, abs=1e-9)
    by_sigma = estimate([full], [full])
    assert by_sigma.second[0] > 100 * by_sigma.first[0] / STEPS


def test_the_bound_of_four_rows_by_hand() -> None:
    constants = Constants(edges=(1.0,), growth=(1.0,), first=(2.0,), second=(0.0,))
    errors = bound(one_block(4), ["R", "C", "R", "P"], constants)[:, 0].tolist()
    # Cache: M1 |s - s0| = 0.5. Recompute: L E = 0.125. Predict: rho = 1/2, so twice the history's error, 0.25.
    assert errors == pytest.approx([0, 0, 0.25 * 0.5, 0.125 + 0.25 * 0.125, 0.15625 + 0.25 * 0.25])


def test_a_run_equal_to_full_compute_has_a_bound_of_zero() -> None:
    schedule = two_blocks()
    full = solve(schedule, constant_growth, plan(schedule, "R"))
    skipped = solve(schedule, constant_growth, plan(schedule, "C"))
    assert bound(schedule, full.modes, estimate([full], [skipped])).max() == 0
