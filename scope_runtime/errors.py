"""What the runtime raises. Every message names the field or call at fault and the mend."""

from __future__ import annotations


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
