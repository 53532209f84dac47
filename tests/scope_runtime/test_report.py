"""What the report says about predictions, on a field whose errors are known."""

from __future__ import annotations

import pytest
import torch

from scope_runtime import Policy, Schedule
from scope_runtime.context import Pass
from scope_runtime.engine import Engine

STEPS = 12


class Field:
    """A model whose output is a polynomial of the noise level."""

    def __init__(self, schedule: Schedule, coefficients: list[float]) -> None:
        self.schedule = schedule
        self.coefficients = coefficients
        self.row = 0

    def forward(self, request: Pass) -> dict[int, torch.Tensor]:
        return {b: self.value(self.schedule.sigma[self.row][b]) for b in request.blocks}

    def modulated_input(self, blocks: tuple[int, ...]) -> dict[int, torch.Tensor]:
        raise AssertionError("the noise level decides")

    def value(self, sigma: float) -> torch.Tensor:
        total = sum(c * sigma**k for k, c in enumerate(self.coefficients))
        return torch.full((3,), total, dtype=torch.float64)


def run(policy: Policy, coefficients: list[float]) -> Engine:
    index = [[r + 1] for r in range(STEPS)]
    schedule = Schedule.from_step_index(index, [[True]] * STEPS, [1 - (r / STEPS) ** 1.5 for r in range(STEPS)], 5)
    engine = Engine(schedule, policy)
    field = Field(schedule, coefficients)
    for row in range(STEPS):
        field.row = row
        engine.run("cond", field)
    return engine


@pytest.mark.parametrize(
    ("order", "coefficients"), [(0, [1.0, 2.0]), (1, [1.0, 0.0, 2.0])], ids=["linear", "quadratic"]
)
def test_predicted_and_measured_errors_agree_where_the_first_neglected_term_is_all(
    order: int, coefficients: list[float]
) -> None:
    report = run(Policy(warmup=order + 2, max_skip=2, order=order), coefficients).report
    errors = report.prediction_errors
    foreseen = [e for e in errors if e.predicted is not None]
    assert len(foreseen) == len(errors) - order - 1  # the first check of this order has none before it
    level = {row: report.schedule.sigma[row][0] for row in range(STEPS)}
    field = Field(report.schedule, coefficients)
    rows = [r for r, letters in enumerate(report.modes) if letters == "R"]
    for e in foreseen:
        # One error is relative to the newest output before the check, the other to the output at the check.
        newest = field.value(level[rows[rows.index(e.row) - 1]])[0]
        truth = field.value(e.sigma)[0]
        assert e.predicted == pytest.approx(float(e.error * truth / newest), rel=1e-3)


def test_a_smooth_field_is_predicted_without_error() -> None:
    report = run(Policy(warmup=3, max_skip=3, order=1), [1.0, -0.5]).report
    assert "P" in "".join(report.modes)
    assert all(e.error < 1e-6 for e in report.prediction_errors if e.order == 1)
