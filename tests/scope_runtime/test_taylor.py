"""Extrapolation on fields whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scope_runtime import History

SIGMAS = (0.95, 0.8, 0.7)
"""Non-uniform on purpose."""


def filled(order: int, field: list[float], sigmas: tuple[float, ...] = SIGMAS) -> History:
    """History of the scalar polynomial with the given coefficients, lowest power first."""
    history = History(order)
    for s in sigmas:
        history.record(s, value(field, s))
    return history


def value(field: list[float], s: float) -> torch.Tensor:
    return torch.full((2, 3), sum(c * s**k for k, c in enumerate(field)), dtype=torch.float64).float()


@pytest.mark.parametrize(
    ("order", "field"), [(0, [1.5]), (1, [1.5, -2.0]), (2, [1.5, -2.0, 3.0])], ids=["constant", "linear", "quadratic"]
)
def test_order_k_is_exact_on_polynomials_of_degree_k(order: int, field: list[float]) -> None:
    torch.testing.assert_close(filled(order, field).extrapolate(0.4, order), value(field, 0.4), rtol=0, atol=1e-5)


def test_order_one_misses_a_quadratic_by_the_known_remainder() -> None:
    history = filled(1, [0.0, 0.0, 3.0])
    error = history.extrapolate(0.4, 1) - value([0.0, 0.0, 3.0], 0.4)
    # Newton's remainder: -(s - s0)(s - s1) v''/2 with v'' = 6.
    expected = -(0.4 - 0.7) * (0.4 - 0.8) * 3.0
    torch.testing.assert_close(error, torch.full((2, 3), expected), rtol=1e-4, atol=1e-5)


def test_an_error_in_the_history_is_amplified_by_at_most_one_plus_two_rho() -> None:
    noisy = History(1)
    noisy.record(0.8, torch.tensor([-1.0]))  # the true field is zero; both errors are 1 at most
    noisy.record(0.7, torch.tensor([1.0]))
    rho = noisy.step_ratio(0.4)
    assert rho == pytest.approx(3.0)
    assert float(noisy.extrapolate(0.4, 1)) == pytest.approx(1 + 2 * rho)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_amplification_never_goes_above_one_plus_two_rho(data: st.DataObject) -> None:
    levels = st.floats(0.001, 1.0)
    s0, s1, s = (data.draw(levels) for _ in range(3))
    if abs(s0 - s1) < 1e-3:
        return
    wrong = st.floats(-1.0, 1.0)
    history = History(1)
    history.record(s1, torch.tensor([data.draw(wrong)], dtype=torch.float64))
    history.record(s0, torch.tensor([data.draw(wrong)], dtype=torch.float64))
    assert abs(float(history.extrapolate(s, 1))) <= (1 + 2 * history.step_ratio(s)) * (1 + 1e-5)


def test_order_is_limited_by_the_points_and_by_the_reach() -> None:
    history = History(2)
    history.record(0.9, torch.ones(1))
    assert history.usable_order(0.8, 2) == 0
    history.record(0.8, torch.ones(1))
    assert history.usable_order(0.7, 2) == 1
    assert history.usable_order(0.5, 2, max_step_ratio=2.0) == 0  # rho is 3
    history.record(0.7, torch.ones(1))
    assert history.usable_order(0.6, 2) == 2
    assert history.usable_order(0.4, 2, max_step_ratio=2.0) == 1


def test_a_block_that_did_not_move_adds_no_point() -> None:
    history = History(1)
    history.record(0.9, torch.ones(1))
    history.record(0.9 - 1e-7, torch.full((1,), 2.0))
    assert len(history) == 1
    assert float(history.extrapolate(0.5, 0)) == 2.0


def test_displacement_is_exact_for_order_one() -> None:
    history = filled(1, [1.0, 2.0])
    newest = history.extrapolate(0.7, 0)
    moved = history.extrapolate(0.4, 1) - newest
    expected = float(torch.linalg.vector_norm(moved) / torch.linalg.vector_norm(newest))
    assert history.displacement(0.4, 1) == pytest.approx(expected, rel=1e-5)
    assert history.displacement(0.4, 0) == 0.0


def test_displacement_bounds_order_two() -> None:
    generator = torch.Generator().manual_seed(0)
    history = History(2)
    for s in SIGMAS:
        history.record(s, torch.randn(50, generator=generator))
    newest = history.extrapolate(0.7, 0)
    moved = torch.linalg.vector_norm(history.extrapolate(0.4, 2) - newest) / torch.linalg.vector_norm(newest)
    assert float(moved) <= history.displacement(0.4, 2) * (1 + 1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_displacement_of_an_output_that_is_not_finite_is_not_a_number(bad: float) -> None:
    history = filled(1, [1.0, 2.0])
    history.record(0.6, torch.tensor([1.0, bad]).repeat(3).reshape(2, 3))
    assert math.isnan(history.displacement(0.5, 1))


def test_half_precision_outputs_are_extrapolated_in_float32() -> None:
    history = History(1)
    for s in (0.8, 0.7):
        history.record(s, torch.full((1,), s, dtype=torch.bfloat16))
    assert history.extrapolate(0.6, 1).dtype == torch.float32
    assert history.bytes == 2 * 4


@pytest.mark.parametrize(("order", "field"), [(0, [1.5, -2.0]), (1, [1.5, -2.0, 3.0])], ids=["linear", "quadratic"])
def test_the_remainder_is_the_error_on_a_polynomial_of_one_degree_more(order: int, field: list[float]) -> None:
    history = filled(order + 1, field)
    newest = history.extrapolate(0.7, 0)
    error = torch.linalg.vector_norm(history.extrapolate(0.4, order) - value(field, 0.4))
    expected = float(error / torch.linalg.vector_norm(newest))
    assert history.remainder(0.4, order) == pytest.approx(expected, rel=1e-4)


def test_the_remainder_is_unknown_with_too_few_points() -> None:
    assert filled(2, [1.0, 2.0], SIGMAS[:2]).remainder(0.4, 1) == math.inf


def dyadic(order: int = 2) -> History:
    """Points at 1, 0.5 and 0.25 whose differences are whole: values 1, 3, 7, so c = 7, -16, 16 (newest first)."""
    history = History(order)
    for position, height in ((1.0, 1.0), (0.5, 3.0), (0.25, 7.0)):
        history.record(position, torch.full((4,), height))
    return history


def test_every_figure_of_a_history_is_newtons_own() -> None:
    history = dyadic()
    # |c| of four equal numbers is twice their size.
    assert history.norms == [14.0, 32.0, 16 * 2.0]
    assert [history.reach(0.0, order) for order in (0, 1, 2)] == [0.25, 0.25 * 0.5, 0.25 * 0.5 * 1.0]
    assert [float(history.extrapolate(0.0, order)[0]) for order in (0, 1, 2)] == [7.0, 7 + 4.0, 7 + 4 + 2.0]
    assert [history.displacement(0.0, order) * 14 for order in (0, 1, 2)] == pytest.approx([0.0, 8.0, 8.0 + 4.0])
    assert [history.remainder(0.0, order) * 14 for order in (0, 1)] == pytest.approx([8.0, 4.0])
    assert history.remainder(0.0, 2) == math.inf
    assert history.step_ratio(0.0) == 1.0
    assert history.bytes == 3 * 4 * 4


def test_a_history_holds_one_point_more_than_its_order() -> None:
    for order in (0, 1, 2):
        history = dyadic(order)
        assert len(history) == order + 1
        assert history.bytes == (order + 1) * 4 * 4
        assert len(history.norms) == order + 1
        assert history.usable_order(0.0, 5) == order


def test_a_cleared_history_is_an_empty_one() -> None:
    history = dyadic()
    assert history.norms
    history.clear()
    assert (len(history), history.bytes, history.norms, history.pending_norms) == (0, 0, [], None)
    assert (history.step_ratio(0.1), history.remainder(0.1, 0), history.usable_order(0.1, 2)) == (
        math.inf,
        math.inf,
        -1,
    )
    history.record(0.5, torch.ones(2))
    assert (len(history), history.usable_order(0.1, 2)) == (1, 0)


def test_positions_as_near_as_a_rounding_are_one_point_and_no_nearer() -> None:
    gap = 1e-5
    for second, points in ((gap, 2), (-gap, 2), (math.nextafter(gap, 0), 1), (-math.nextafter(gap, 0), 1)):
        history = History(1)
        history.record(0.0, torch.zeros(1))
        history.record(second, torch.ones(1))
        assert len(history) == points
        assert float(history.extrapolate(0.0, 0)) == 1.0


def test_a_reach_that_equals_the_limit_is_within_it() -> None:
    history = dyadic()
    assert history.usable_order(0.0, 2, 1.0) == 2
    assert history.usable_order(0.0, 2, math.nextafter(1.0, 0)) == 1
    assert history.usable_order(0.0, 1, math.nextafter(1.0, 0)) == 0
    # Order 0 reaches nowhere: no limit lowers it.
    assert history.usable_order(0.0, 0, 0.0) == 0


def test_norms_are_read_once_and_anew_after_a_point() -> None:
    history = History(1)
    assert (history.pending_norms, history.norms) == (None, [])
    history.record(1.0, torch.tensor([3.0, 4.0]))
    assert history.pending_norms is not None
    assert history.pending_norms.tolist() == [5.0]
    history.norms = [6.0]  # what all processes agreed on
    assert (history.pending_norms, history.norms) == (None, [6.0])
    history.record(0.5, torch.tensor([3.0, 4.0]))
    assert history.norms == [5.0, 0.0]
    assert history.pending_norms is None


def test_from_an_output_of_nothing_any_move_is_infinite_and_none_is_none() -> None:
    still, moving = History(1), History(1)
    for position, height in ((1.0, 0.0), (0.5, 0.0)):
        still.record(position, torch.full((2,), height))
    for position, height in ((1.0, 1.0), (0.5, 0.0)):
        moving.record(position, torch.full((2,), height))
    assert still.displacement(0.25, 1) == 0.0
    assert moving.displacement(0.25, 1) == math.inf
    assert moving.displacement(0.25, 0) == 0.0
    assert still.remainder(0.25, 0) == moving.remainder(0.25, 0) == math.inf


def test_small_outputs_move_relative_to_themselves() -> None:
    history = History(1)
    for position, height in ((1.0, 0.25), (0.5, 0.125)):
        history.record(position, torch.tensor([height]))
    assert history.displacement(0.25, 1) == 0.5
    assert history.remainder(0.25, 0) == 0.5


@pytest.mark.parametrize("norms", [[math.inf, 1.0], [1.0, math.inf], [math.nan, 1.0], [1.0, math.nan]])
def test_norms_that_are_not_finite_bear_no_reuse(norms: list[float]) -> None:
    history = History(1)
    history.record(1.0, torch.ones(1))
    history.record(0.5, torch.ones(1))
    history.norms = norms
    assert math.isnan(history.displacement(0.25, 1))
    if norms[0] != math.inf:
        assert history.remainder(0.25, 0) == math.inf
