"""What a study wants to be promised of prompts that nobody has seen."""

from __future__ import annotations

from pydantic import Field

from calibrate.spec.strict import Strict


class Guarantee(Strict):
    """A promise that the exported policy has to pass a test for, on the study's `guarantee_cases`.

    "With `confidence`, at least a `share` of the prompts drawn like these hold every floor that is set per prompt, and
    the means reach the floors that are set on means." At most `most_policies` candidates of the front are tested, from
    careful to bold; see `calibrate.results.guarantee`.
    """

    share: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    most_policies: int = Field(default=6, ge=1, le=1000)
