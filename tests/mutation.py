"""What tests that mutate documents share."""

from __future__ import annotations

from typing import Any


def places(data: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document of mappings and lists, as keys from the top."""
    found = [prefix] if prefix else []
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        found += places(value, (*prefix, key))
    return found
