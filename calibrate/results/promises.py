"""What may be promised of prompts that nobody has seen: the study's own wish and others, in words and as evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from calibrate.errors import CalibrateError
from calibrate.quality.metrics import METRIC_VERSION
from calibrate.results.guarantee import Promise, Tried, cases_needed, largest_share, share_test
from calibrate.spec.floors import Floors
from calibrate.spec.generation import Case
from calibrate.spec.guarantee import Guarantee
from calibrate.spec.score_floor import score_of
from scope_runtime import ProfileError

# What the table asks of every prompt's PSNR, and of how many prompts, beside what the study does.
FLOORS_DB = (25.0, 28.0, 30.0, 32.0)
SHARES = (0.7, 0.8, 0.9)

NO_GUARANTEE = (
    "this study tests no promise; give it one, such as `guarantee: {share: 0.9, confidence: 0.9}`, and guarantee_cases."
)


def refuse_too_few(guarantee: Guarantee, cases: int) -> None:
    """Refuses a wish that so many cases cannot fulfil.

    Raises:
        CalibrateError: Saying what they can promise, and how many the wish takes.
    """
    share, confidence = guarantee.share, guarantee.confidence
    if share_test(cases, share, confidence) is None:
        needed = cases_needed(share, confidence)
        most = math.floor(100 * largest_share(cases, confidence)) / 100
        raise CalibrateError(
            f"guarantee_cases: {_cases(cases)} can promise at most a share of {most:g} with confidence {confidence:g}, "
            f"if none misses, and a share of {share:g} takes {needed}; add {needed - cases}, or ask for less."
        )


def declared_wish(guarantee: Guarantee, floors: Floors) -> dict[str, Any]:
    """What tells one wish from another, as plain JSON."""
    return {"share": guarantee.share, "confidence": guarantee.confidence, "floors": plain_floors(_bare(floors))}


def promises_of(guarantee: Guarantee, floors: Floors) -> list[Promise]:
    """The study's wish, and after it the promises of the table, but for the one that is the wish itself."""
    wish = Promise(guarantee.share, guarantee.confidence, _bare(floors))
    own = floors.psnr_worst_prompt_db
    asked = sorted({*FLOORS_DB, *(() if own is None else (own,))})
    table = [
        Promise(share, guarantee.confidence, prompts_alone(floor))
        for floor in asked
        for share in sorted({*SHARES, guarantee.share})
    ]
    return [wish, *(promise for promise in table if promise != wish)]


def require_promise(guarantee: Guarantee | None, floors: Floors, asked: tuple[float, float]) -> None:
    """Makes sure that a study tests a promise.

    Args:
        guarantee: The study's wish, if it has one.
        floors: The study's.
        asked: A floor on the PSNR of every prompt (dB), and a share.

    Raises:
        CalibrateError: If it tests none, or not this one.
    """
    if guarantee is None:
        raise CalibrateError(f"--promise: {NO_GUARANTEE}")
    known = promises_of(guarantee, floors)
    if not any(promise.floors == prompts_alone(asked[0]) and promise.share == asked[1] for promise in known):
        floor_names = ", ".join(
            f"{floor:g}" for floor in sorted({p.floors.psnr_worst_prompt_db or 0 for p in known[1:]})
        )
        shares = ", ".join(f"{share:g}" for share in sorted({p.share for p in known[1:]}))
        raise CalibrateError(
            f"--promise: {asked[0]:g},{asked[1]:g} is not in the table; name one of its floors ({floor_names}) and one "
            f"of its shares ({shares})."
        )


def _bare(floors: Floors) -> Floors:
    """What a promise is about: neither the search's margin nor memory, which no prompt changes."""
    return floors.model_copy(update={"safety_margin_db": 0.0, "max_memory": None})


def plain_floors(floors: Floors) -> dict[str, Any]:
    """The floors that are set, as plain JSON."""
    found = floors.model_dump(mode="json", exclude={"safety_margin_db"}, exclude_none=True)
    return {name: value for name, value in found.items() if name != "scores" or value}


def promise_in(evidence: Mapping[str, Any]) -> Promise:
    """The promise that a profile's evidence holds under `guarantee`.

    Raises:
        ProfileError: If its floors are not ones that can be judged by.
    """
    # Floors that a promise leaves out are not those that a study leaves out, which have defaults.
    none = dict.fromkeys(Floors.model_fields) | {"scores": {}}
    try:
        floors = Floors.model_validate({**none, "safety_margin_db": 0.0, **evidence["floors"]})
    except ValidationError as error:
        raise ProfileError("evidence.guarantee.floors", "is damaged; export the profile again") from error
    return Promise(float(evidence["share"]), float(evidence["confidence"]), floors)


def prompts_alone(floor_db: float) -> Floors:
    """A floor on the PSNR of every prompt's clip, and nothing else."""
    return Floors(psnr_db=None, psnr_worst_prompt_db=floor_db, safety_margin_db=0.0)


# What a floor asks of, in words.
_WORDS = {
    "psnr_worst_prompt_db": "PSNR",
    "psnr_worst_frame_db": "PSNR in every frame",
    "psnr_worst_block_db": "PSNR in every block",
    "psnr_db": "PSNR",
    "temporal_psnr_db": "PSNR of motion",
    "ssim": "SSIM",
}


def told(promise: Promise, cases: int) -> str:
    """A promise in words, for so many cases."""
    floors = promise.floors
    each = " and ".join(_at_least(floors, name, floor) for name, floor in floors.of_each_prompt.items())
    means = "".join(f", and a mean {_at_least(floors, name, floor)}" for name, floor in floors.of_means.items())
    return (
        f"With confidence {promise.confidence:.4g}, a share of at least {promise.share:g} of all prompts drawn like "
        f"the {_cases(cases)} have {each}{means}."
    )


def _at_least(floors: Floors, name: str, floor: float) -> str:
    for demand in floors.score_demands():
        if demand.name == name:
            return f"score {score_of(demand.figure)} {demand.bound}"
    return f"{_WORDS.get(name, name)} of at least {floor:.10g}{' dB' if name.endswith('_db') else ''}"


def _cases(number: int) -> str:
    return f"{number} guarantee case{'' if number == 1 else 's'}"


def evidence_of(
    promise: Promise, tried: Tried, cases: Sequence[Case], *, attempt: int, cells: int | None
) -> dict[str, Any]:
    """What a profile keeps of a promise that its policy has passed.

    Args:
        promise: What is promised.
        tried: The policy on all cases.
        cases: The guarantee cases.
        attempt: See `PromiseTable`.
        cells: For how many promises the confidence is corrected, because one of them was picked after looking; None for
            the wish that the study declared.
    """
    test = promise.test(len(cases))
    assert test is not None
    figures = [of_one for of_one in tried.figures if of_one is not None]
    bounds = promise.bounds(figures)
    listed = [
        {"prompt": case.prompt, "seed": case.seed, **of_one, "missed": promise.floors.missed_by_prompt(of_one)}
        for case, of_one in zip(cases, tried.figures, strict=True)
        if of_one is not None
    ]
    return {
        "statement": told(promise, len(cases)),
        "assumption": _assumption(cells, attempt),
        "share": promise.share,
        "confidence": promise.confidence,
        "corrected_for": cells,
        "attempt": attempt,
        "floors": plain_floors(promise.floors),
        "n": len(listed),
        "misses": sum(bool(case["missed"]) for case in listed),
        "tested": test.cases,
        "allowed_misses": test.misses,
        "means": {
            name: {
                "mean": sum(promise.floors.of_one(name, of_one) for of_one in figures) / len(figures),
                "bound": bounds[name],
                "floor": floor,
            }
            for name, floor in promise.floors.of_means.items()
        },
        "speedup_evaluations": tried.speedup,
        "metric_version": METRIC_VERSION,
        "cases": listed,
    }


def _assumption(cells: int | None, attempt: int) -> str:
    said = (
        "The prompts that it will be used on are drawn like these cases, and so are their seeds; the settings are "
        "those of the profile."
    )
    if cells is not None:
        said += f" It was picked from {cells} promises after looking, and its confidence is corrected for that."
    if attempt > 1:
        said += (
            f" These cases have tested {attempt - 1} earlier choice{'' if attempt == 2 else 's'} of policies as well, "
            "and the confidence is that of this one by itself."
        )
    return said
