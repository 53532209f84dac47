"""Strict reading of untrusted JSON: every error names the field."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from scope_runtime.errors import ProfileError


def _name(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


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
            raise ProfileError(_name(where, str(key)), f"unknown field; known here: {', '.join(known)}")


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
        raise ProfileError(_name(where, key), f"must be a number{' or null' if optional else ''}, not {value!r}")
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ProfileError(_name(where, key), f"must be finite, not {value!r}")
    if not minimum <= value <= maximum:
        bounds = f"at least {minimum:g}" if maximum == math.inf else f"between {minimum:g} and {maximum:g}"
        raise ProfileError(_name(where, key), f"must be {bounds}, not {value:g}")
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
        raise ProfileError(_name(where, key), f"must be a whole number{' or null' if optional else ''}, not {value!r}")
    if not minimum <= value <= maximum:
        raise ProfileError(_name(where, key), f"must be between {minimum} and {maximum}, not {value}")
    return value


def string(data: Mapping[str, Any], key: str, where: str) -> str:
    """A string that is not empty."""
    value = _get(data, key, where)
    if not isinstance(value, str) or not value:
        raise ProfileError(_name(where, key), f"must be a non-empty string, not {value!r}")
    return value


def choice(data: Mapping[str, Any], key: str, where: str, options: tuple[str, ...]) -> str:
    """One of the given strings."""
    value = _get(data, key, where)
    if value not in options or not isinstance(value, str):
        raise ProfileError(_name(where, key), f"must be one of {', '.join(options)}, not {value!r}")
    return value


def array_of_numbers(data: Mapping[str, Any], key: str, where: str) -> tuple[float, ...]:
    """A list of finite floats."""
    value = _get(data, key, where)
    if not isinstance(value, (list, tuple)):
        raise ProfileError(_name(where, key), f"must be a list of numbers, not {type(value).__name__}")
    items = {str(i): v for i, v in enumerate(value)}
    return tuple(number(items, i, _name(where, key)) for i in items)


def plain_json(value: Any, where: str) -> None:
    """Refuses anything JSON cannot carry faithfully, not-a-number and infinities included."""
    if value is None or isinstance(value, (str, bool, int)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ProfileError(where, f"must be finite, not {value!r}")
        return
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            plain_json(item, f"{where}[{i}]")
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ProfileError(where, f"keys must be strings, not {key!r}")
            plain_json(item, _name(where, key))
        return
    raise ProfileError(where, f"{type(value).__name__} is not a JSON value")
