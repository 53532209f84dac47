"""What a check of a study finds, before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: What was checked.
        state: `failed` would stop the study, `warning` may spoil it.
        message: One sentence; with the mend unless all is well.
        figures: The numbers behind it; bytes, seconds or counts.
    """

    name: str
    state: State
    message: str
    figures: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {"name": self.name, "state": self.state, "message": self.message, "figures": self.figures}
