"""The made-up studies, for the tests of what is shown of a study."""

from __future__ import annotations

from tests.made import made, mixed, promised, read_only

__all__ = ["made", "mixed", "promised", "read_only"]
