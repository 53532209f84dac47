"""The made-up studies, for the tests of the report."""

from __future__ import annotations

from tests.made import made, promised

__all__ = ["made", "promised"]
