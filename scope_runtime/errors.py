"""What the runtime raises. Every message names the field or call at fault and the mend."""

from __future__ import annotations

import reprlib
from typing import Any

# A number with more digits than this is shown by their count: Python refuses to print one with thousands.
_MOST_DIGITS = 40
_LONGEST_NAME = 80


class ScopeError(Exception):
    """Base class of everything this package raises on purpose."""


class ProfileError(ScopeError, ValueError):
    """A profile, or a part of one, is malformed.

    Args:
        field: Dotted name of the offending field, for example ``policy.max_skip``.
        problem: What is wrong with it and how to mend it.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        self.problem = problem
        super().__init__(f"{field}: {problem}" if field else problem)

    def __reduce__(self) -> tuple[type[ProfileError], tuple[str, str]]:
        return type(self), (self.field, self.problem)


class ProfileMismatch(ProfileError):
    """A well-formed profile that was calibrated for another model or other settings."""


class AttachError(ScopeError, RuntimeError):
    """The pipeline cannot be accelerated as it stands (wrong family, another cache enabled, already attached)."""


class ScopeWarning(UserWarning):
    """The runtime did something safer and slower than what the profile asked for."""


class ContextTooLarge(ScopeError, MemoryError):
    """The context of a generation would take more memory than the caller allows."""


class ConcurrentCallError(ScopeError, RuntimeError):
    """Two threads generate with one accelerated pipeline at the same time."""


class _Brief(reprlib.Repr):
    """`repr`, but short, and without what may hold a password."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**_MOST_DIGITS else f"a number of more than {_MOST_DIGITS} digits"

    def repr_str(self, x: str, level: int) -> str:
        return "an address" if "://" in x else super().repr_str(x, level)


def shown(value: Any) -> str:
    """A value as a message shows it: short, on one line, and of an address (`scheme://...`) only that it is one."""
    return _Brief().repr(value)


def named(key: object) -> str:
    """A key as part of a field's name: as it is, unless it is long, an address, or would not print on one line."""
    plain = isinstance(key, str) and key.isprintable() and len(key) <= _LONGEST_NAME and "://" not in key
    return str(key) if plain else shown(key)
