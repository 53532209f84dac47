"""What all parts of a study share: unknown fields, silent conversions and odd numbers are refused."""

from __future__ import annotations

import unicodedata
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationInfo,
    field_validator,
    model_validator,
)

# What settings of profiles and columns of databases hold.
_LARGEST = 2**31 - 1


class Strict(BaseModel):
    """Refuses unknown fields, silent conversions and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _can_be_kept(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses text that no database holds, and whole numbers beyond 32 bits where a field sets no limit."""
        if isinstance(value, str) and (problem := not_to_be_kept(value)):
            raise ValueError(problem)
        limits = cls.model_fields[str(info.field_name)].metadata
        limited = any(hasattr(limit, name) for limit in limits for name in ("le", "lt"))
        if isinstance(value, int) and not limited and abs(value) > _LARGEST:
            raise ValueError(f"should be at most {_LARGEST}")
        return value


def not_to_be_kept(text: str) -> str | None:
    """Names a character that databases or paths do not take: a control character but white space, or half of a pair."""
    for character in text:
        if character not in "\t\n\r" and unicodedata.category(character) in ("Cc", "Cs"):
            return f"must not hold the character U+{ord(character):04X}; remove it"
    return None


class IntRange(Strict):
    """Whole numbers from `low` to `high`, both included."""

    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self


class FloatRange(Strict):
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self
