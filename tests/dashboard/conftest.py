"""The made-up studies, for the dashboard's tests."""

from __future__ import annotations

from tests.made import made, mixed, promised, read_only

__all__ = ["made", "mixed", "promised", "read_only"]
