"""Extrapolation along the noise level or along the steps, on fields whose outputs are known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from scope_runtime import Policy, Schedule
from scope_runtime.context import Pass
from scope_runtime.engine import Engine
from scope_runtime.schedule import AXES

STEPS = 12
# Steps of very different lengths, as flow shift makes them.
LEVELS = [1 - (step / STEPS) ** 3 for step in range(STEPS)]


class Field:
    """A model of one block whose output at each of its steps is given."""

    def __init__(self, outputs: list[float]) -> None:
        self.outputs = outputs
        self.row = 0

    def forward(self, request: Pass) -> dict[int, torch.Tensor]:
        return {block: torch.full((3,), self.outputs[self.row], dtype=torch.float64) for block in request.blocks}

    def modulated_input(self, blocks: tuple[int, ...]) -> dict[int, torch.Tensor]:
        raise AssertionError("the noise level decides")


def schedule_of(restarts: frozenset[tuple[int, int]] = frozenset()) -> Schedule:
    plain = Schedule.from_step_index([[row + 1] for row in range(STEPS)], [[True]] * STEPS, LEVELS, 5)
    return Schedule(plain.sigma, plain.phase, plain.block_frames, restarts=restarts)


def generate(policy: Policy, outputs: list[float], schedule: Schedule | None = None) -> tuple[list[float], Engine]:
    """What the solver is given in every row, and the engine."""
    engine = Engine(schedule or schedule_of(), policy)
    field = Field(outputs)
    given = []
    for field.row in range(STEPS):
        given.append(float(engine.run("cond", field)[0][0]))
    return given, engine


def polynomial(degree: int, axis: str) -> list[float]:
    """Outputs at every step that are a polynomial of the position along an axis."""
    positions = range(STEPS) if axis == "step" else LEVELS
    return [
        2.0 + sum((3 * position / max(positions)) ** power for power in range(1, degree + 1)) for position in positions
    ]


def modes(engine: Engine) -> str:
    return "".join(engine.report.modes)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("order", [1, 2])
def test_order_k_is_exact_on_polynomials_of_degree_k_along_its_own_axis(axis: str, order: int) -> None:
    policy = Policy(warmup=3, max_skip=3, order=order, axis=axis)
    for along in AXES:
        outputs = polynomial(order, along)
        given, engine = generate(policy, outputs)
        assert "PPP" in modes(engine)
        error = max(abs(a - b) for a, b in zip(given, outputs, strict=True))
        assert (error < 1e-4) == (along == axis)
        checks = [found.error for found in engine.report.prediction_errors if found.order == order]
        assert (max(checks) < 1e-4) == (along == axis), "the check of a prediction goes by the policy's axis"


def test_the_step_axis_counts_each_blocks_own_updates() -> None:
    index = [[row + 1, max(row - 3, 0)] for row in range(STEPS)] + [
        [STEPS + 1, row - 3] for row in range(STEPS, STEPS + 4)
    ]
    update = [[0 < k <= STEPS for k in row] for row in index]
    schedule = Schedule.from_step_index(index, update, LEVELS, 5)
    assert [schedule.position(row, 1, "step") for row in range(4, STEPS + 4)] == list(range(STEPS))


@pytest.mark.parametrize("axis", AXES)
def test_the_step_ratio_is_the_axis_own(axis: str) -> None:
    """Along the steps a skip after two neighbouring recomputes reaches rho = 1, 2, 3; in sigma it is far more."""
    outputs = polynomial(1, axis)
    reached = {}
    for limit in (1.0, 2.0, math.nextafter(2.0, 0), 3.0):
        given, engine = generate(Policy(warmup=3, max_skip=3, axis=axis, max_step_ratio=limit), outputs)
        # Rows 3 to 5 are skipped first; where the ratio is over the limit the newest output is used as it is.
        reached[limit] = [given[row] != pytest.approx(outputs[2]) for row in (3, 4, 5)]
        assert modes(engine).startswith("RRRPPPR")
    if axis == "step":
        assert reached == {
            1.0: [True, False, False],
            2.0: [True, True, False],
            math.nextafter(2.0, 0): [True, False, False],
            3.0: [True, True, True],
        }
    else:
        rho = [(LEVELS[2] - LEVELS[row]) / (LEVELS[1] - LEVELS[2]) for row in (3, 4, 5)]
        assert reached == {limit: [ratio <= limit for ratio in rho] for limit in reached}


def test_the_magnitude_guard_measures_the_prediction_along_the_policys_axis() -> None:
    """Output 4 at step 2 and a slope of -1 a step: two steps on, the prediction has moved by exactly half of it."""
    outputs = [6.0 - step if step < 6 else 1.0 for step in range(STEPS)]
    at, engine = generate(Policy(warmup=3, max_skip=9, axis="step", magnitude_bound=0.5), outputs)
    assert modes(engine)[:6] == "RRRPPR", "a displacement that equals the bound is within it"
    assert at[3:5] == [3.0, 2.0]
    assert engine.report.fallbacks > 0
    _, engine = generate(Policy(warmup=3, max_skip=9, axis="step", magnitude_bound=math.nextafter(0.5, 0)), outputs)
    assert modes(engine)[:5] == "RRRPR"


def test_the_error_budget_takes_the_neglected_term_along_the_policys_axis_and_the_solvers_step_in_sigma() -> None:
    outputs = [1.0 + step**2 for step in range(STEPS)]
    schedule = schedule_of()
    # Order 1 leaves out (k - 2)(k - 1) [v0, v1, v2], a divided difference of 1; the newest output is 5.
    spent = [schedule.step_size(row, 0) * (row - 2) * (row - 1) / 5 for row in (3, 4)]
    shared = {"warmup": 3, "max_skip": 9, "axis": "step"}
    _, engine = generate(Policy(**shared, error_budget=sum(spent) * 1.001), outputs)
    assert modes(engine)[:6] == "RRRPPR"
    _, engine = generate(Policy(**shared, error_budget=sum(spent) * 0.999), outputs)
    assert modes(engine)[:5] == "RRRPR"


@pytest.mark.parametrize("axis", AXES)
def test_a_restart_is_no_point_of_the_same_course_on_either_axis(axis: str) -> None:
    jump = 5
    outputs = [value + (10 if row >= jump else 0) for row, value in enumerate(polynomial(1, axis))]
    policy = Policy(warmup=1, max_skip=2, axis=axis)
    given, engine = generate(policy, outputs, schedule_of(frozenset({(jump, 0)})))
    assert modes(engine)[jump] == "R"
    # The first point after the jump stands alone: its value is used as it is.
    assert given[jump : jump + 3] == pytest.approx([outputs[jump]] * 3)
    assert given[jump + 4 :] == pytest.approx(outputs[jump + 4 :], abs=1e-4)


@pytest.mark.parametrize("axis", AXES)
def test_the_error_foreseen_is_the_error_made_where_the_first_neglected_term_is_all(axis: str) -> None:
    outputs = polynomial(2, axis)
    _, engine = generate(Policy(warmup=4, max_skip=2, axis=axis), outputs)
    before = dict(map(reversed, pairwise(row for row, letter in enumerate(modes(engine)) if letter == "R")))
    foreseen = [found for found in engine.report.prediction_errors if found.predicted is not None]
    assert len(foreseen) > 2
    for found in foreseen:
        # One error is relative to the newest output before the check, the other to the output at the check.
        made = found.error * outputs[found.row] / outputs[before[found.row]]
        assert found.predicted == pytest.approx(made, rel=1e-2)
