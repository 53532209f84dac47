"""The change of a block, and the map to expected output change."""

from __future__ import annotations

import pytest
import torch

from scope_runtime import ChangeMap, ProfileError
from scope_runtime.indicator import relative_l1


def test_a_map_is_clamped_at_its_ends_and_linear_between_knots_that_are_not_zero() -> None:
    g = ChangeMap((0.25, 0.5, 1.0), (0.5, 1.0, 4.0))
    assert [g(value) for value in (0.0, 0.25, 0.375, 0.5, 0.75, 1.0, 2.0)] == [0.5, 0.5, 0.75, 1.0, 2.5, 4.0, 4.0]


def test_a_map_of_one_knot_is_a_constant() -> None:
    assert [ChangeMap((0.5,), (2.0,))(value) for value in (0.0, 0.5, 1.0)] == [2.0, 2.0, 2.0]


def test_a_map_may_begin_at_zero_and_hold_a_plateau() -> None:
    g = ChangeMap((0.0, 1.0, 2.0), (0.0, 0.0, 1.0))
    assert [g(value) for value in (0.0, 0.5, 1.0, 1.5)] == [0.0, 0.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("x", "y", "field"),
    [
        ((), (), "here"),
        ((1.0, 2.0), (1.0,), "here"),
        ((float("inf"),), (1.0,), "here"),
        ((1.0,), (-0.5,), "here"),
        ((-0.5,), (1.0,), "here"),
        ((1.0, 1.0), (1.0, 2.0), "here.x"),
        ((2.0, 1.0), (1.0, 2.0), "here.x"),
        ((1.0, 2.0, 3.0), (1.0, 3.0, 2.0), "here.y"),
    ],
)
def test_knots_that_break_a_rule_are_refused_where_they_stand(
    x: tuple[float, ...], y: tuple[float, ...], field: str
) -> None:
    with pytest.raises(ProfileError) as error:
        ChangeMap(x, y, "here")
    assert error.value.field == field


def test_a_map_round_trips_as_plain_json() -> None:
    g = ChangeMap((0.25, 0.5), (0.5, 1.0))
    assert g.to_dict() == {"x": [0.25, 0.5], "y": [0.5, 1.0]}
    assert ChangeMap.from_dict(g.to_dict(), "here") == g


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"x": [1], "y": [1], "z": [1]}, "here.z"),
        ({"x": [1]}, "here.y"),
        ({"y": [1]}, "here.x"),
        ({"x": ["a"], "y": [1]}, "here.x.0"),
        ({"x": [1], "y": 1}, "here.y"),
        ({"x": [2, 1], "y": [1, 2]}, "here.x"),
        ([], "here"),
    ],
)
def test_a_map_that_is_none_is_refused_where_it_stands(data: object, field: str) -> None:
    with pytest.raises(ProfileError) as error:
        ChangeMap.from_dict(data, "here")  # type: ignore[arg-type]
    assert error.value.field == field


def test_the_relative_change_is_the_mean_change_over_the_mean_old_value() -> None:
    old, new = torch.tensor([1.0, -3.0]), torch.tensor([2.0, -6.0])
    assert float(relative_l1(new, old)) == 1.0
    assert float(relative_l1(old, new)) == 0.5
    assert float(relative_l1(old, old)) == 0.0


def test_a_change_from_nothing_is_huge_and_not_undefined() -> None:
    assert float(relative_l1(torch.zeros(2), torch.zeros(2))) == 0.0
    assert float(relative_l1(torch.full((2,), 1e-30), torch.zeros(2))) > 1e7


@pytest.mark.parametrize(
    ("new", "old", "result"),
    [
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float64, torch.float64, torch.float64),
    ],
)
def test_changes_are_measured_in_float32_at_least(new: torch.dtype, old: torch.dtype, result: torch.dtype) -> None:
    change = relative_l1(torch.full((3,), 1.0, dtype=new), torch.full((3,), 2.0, dtype=old))
    assert change.dtype == result
    assert float(change) == 0.5
