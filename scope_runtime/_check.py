"""Strict reading of untrusted JSON: every error names the field."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from scope_runtime.errors import ProfileError, named, shown

# Deeper than any profile; readers that descend must not run out of stack.
_DEEPEST = 32
# What a number in a report can be at most; with more, sums and tolerances would leave what JSON can carry.
_LARGEST_FIGURE = 1e15


def _name(where: str, key: object) -> str:
    return f"{where}.{named(key)}" if where else named(key)


def mapping(data: Any, where: str) -> Mapping[str, Any]:
    """``data`` itself, if it is a JSON object."""
    if not isinstance(data, Mapping):
        raise ProfileError(where, f"must be a JSON object, not {type(data).__name__}")
    return data


def reject_unknown(data: Any, known: Iterable[str], where: str) -> None:
    """Refuses keys that nobody would read: a misspelt field must not be ignored in silence."""
    known = tuple(known)
    for key in mapping(data, where):
        if key not in known:
            raise ProfileError(_name(where, key), f"unknown field; known here: {', '.join(known)}")


def complete(data: Any, names: Iterable[str], where: str) -> Mapping[str, Any]:
    """``data`` itself, if it is a JSON object with exactly these fields."""
    names = tuple(names)
    reject_unknown(data, names, where)
    for name in names:
        _get(data, name, where)
    return mapping(data, where)


def _get(data: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in data:
        raise ProfileError(_name(where, key), "is missing")
    return data[key]


def number(
    data: Mapping[str, Any],
    key: str,
    where: str,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    optional: bool = False,
) -> Any:
    """A finite float within bounds (None passes when ``optional``)."""
    value = _get(data, key, where)
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ProfileError(_name(where, key), f"must be a number{' or null' if optional else ''}, not {shown(value)}")
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ProfileError(_name(where, key), f"must be finite, not {shown(value)}")
    if not minimum <= value <= maximum:
        bounds = f"at least {minimum:g}" if maximum == math.inf else f"between {minimum:g} and {maximum:g}"
        raise ProfileError(_name(where, key), f"must be {bounds}, not {shown(value)}")
    return value


def integer(
    data: Mapping[str, Any],
    key: str,
    where: str,
    *,
    minimum: int,
    maximum: int = 2**31 - 1,
    optional: bool = False,
) -> Any:
    """A whole number within bounds (None passes when ``optional``)."""
    value = _get(data, key, where)
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        kind = "a whole number or null" if optional else "a whole number"
        raise ProfileError(_name(where, key), f"must be {kind}, not {shown(value)}")
    if not minimum <= value <= maximum:
        raise ProfileError(_name(where, key), f"must be between {minimum} and {maximum}, not {shown(value)}")
    return value


def string(data: Mapping[str, Any], key: str, where: str) -> str:
    """A string that is not empty."""
    value = _get(data, key, where)
    if not isinstance(value, str) or not value:
        raise ProfileError(_name(where, key), f"must be a non-empty string, not {shown(value)}")
    _text(value, _name(where, key))
    return value


def choice(data: Mapping[str, Any], key: str, where: str, options: tuple[str, ...]) -> str:
    """One of the given strings."""
    value = _get(data, key, where)
    if value not in options or not isinstance(value, str):
        raise ProfileError(_name(where, key), f"must be one of {', '.join(options)}, not {shown(value)}")
    return value


def array(data: Mapping[str, Any], key: str, where: str) -> list[Any] | tuple[Any, ...]:
    """A list of anything."""
    value = _get(data, key, where)
    if not isinstance(value, (list, tuple)):
        raise ProfileError(_name(where, key), f"must be a list, not {shown(value)}")
    return value


def array_of_numbers(data: Mapping[str, Any], key: str, where: str) -> tuple[float, ...]:
    """A list of finite floats."""
    items = {str(i): v for i, v in enumerate(array(data, key, where))}
    return tuple(number(items, i, _name(where, key)) for i in items)


def figure(data: Mapping[str, Any], key: str, where: str) -> float:
    """A measured number."""
    return float(number(data, key, where, minimum=-_LARGEST_FIGURE, maximum=_LARGEST_FIGURE))


def plain_json(value: Any, where: str, depth: int = 0) -> None:
    """Refuses anything JSON cannot carry faithfully (infinities, half characters), and deep nesting."""
    if value is None or isinstance(value, bool):
        return
    if depth > _DEEPEST:
        raise ProfileError(where, f"is nested more than {_DEEPEST} levels deep")
    if isinstance(value, str):
        _text(value, where)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise ProfileError(where, f"must fit into 64 bits, not {shown(value)}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ProfileError(where, f"must be finite, not {value!r}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            plain_json(item, f"{where}[{i}]", depth + 1)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ProfileError(where, f"keys must be strings, not {shown(key)}")
            _text(key, where)
            plain_json(item, _name(where, key), depth + 1)
    else:
        raise ProfileError(where, f"{type(value).__name__} is not a JSON value")


def _text(value: str, where: str) -> None:
    """Refuses half of a UTF-16 pair, which no file and no database can hold."""
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ProfileError(where, f"holds half of a character: {shown(value)}")
