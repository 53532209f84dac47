"""What goes wrong for reasons that lie with the user's input or machine."""

from __future__ import annotations


class CalibrateError(Exception):
    """An expected failure; its message is one sentence that names what is at fault and how to mend it."""
