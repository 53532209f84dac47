"""What a profile's evidence must hold, and of what kind is what it may hold beside that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scope_runtime import _check
from scope_runtime.errors import ProfileError

REQUIRED_EVIDENCE = (
    "speedup_evaluations",
    "speedup_denoise",
    "speedup_end_to_end",
    "psnr_db",
    "psnr_worst_prompt_db",
    "psnr_worst_frame_db",
    "ssim",
    "n",
)
"""Held-out figures without which nobody should trust a profile."""

# What later readers take for granted of the figures and parts that may be left out.
_FIGURES = ("psnr_worst_block_db", "temporal_psnr_db", "flicker", "motion_error_px")
_TABLES_OF_FIGURES = ("scores", "missed_floors")
_OBJECTS = (
    "content",
    "exact",
    "floors",
    "guarantee",
    "hardware",
    "intervals",
    "metrics",
    "search",
    "timing",
    "versions",
    "worst_prompt",
)


def check_evidence(evidence: Any) -> None:
    """Makes sure that whoever reads evidence finds in each place what belongs there.

    Raises:
        ProfileError: Naming the first figure or part that is missing or of the wrong kind.
    """
    where = "evidence"
    _check.plain_json(_check.mapping(evidence, where), where)
    for name in REQUIRED_EVIDENCE:
        _check.figure(evidence, name, where)
    _check.integer(evidence, "n", where, minimum=1)
    if "metric_version" in evidence:
        _check.integer(evidence, "metric_version", where, minimum=1)
    for name in _given(evidence, _FIGURES):
        _check.figure(evidence, name, where)
    for name in _given(evidence, (*_OBJECTS, *_TABLES_OF_FIGURES)):
        _check.mapping(evidence[name], f"{where}.{name}")
    for table in _given(evidence, _TABLES_OF_FIGURES):
        for name in evidence[table]:
            _check.figure(evidence[table], name, f"{where}.{table}")
    if "exact" in evidence:
        _check.figure(evidence["exact"], "max_abs_diff", f"{where}.exact")
    if "worst_prompt" in evidence:
        _check_case(evidence["worst_prompt"], f"{where}.worst_prompt")
    if "guarantee" in evidence:
        _check_guarantee(evidence["guarantee"], f"{where}.guarantee")
    for number, case in enumerate(_check.array(evidence, "cases", where) if "cases" in evidence else ()):
        _check_case(case, f"{where}.cases[{number}]")


def _check_guarantee(guarantee: Mapping[str, Any], where: str) -> None:
    for name in ("statement", "assumption"):
        _check.string(guarantee, name, where)
    for name in ("share", "confidence"):
        if not 0 < _check.figure(guarantee, name, where) < 1:
            raise ProfileError(f"{where}.{name}", "must be above 0 and below 1")
    for name in ("n", "misses"):
        _check.integer(guarantee, name, where, minimum=0)
    _check.mapping(guarantee.get("floors"), f"{where}.floors")
    for number, case in enumerate(_check.array(guarantee, "cases", where)):
        _check_case(case, f"{where}.cases[{number}]")


def _given(evidence: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in evidence]


def _check_case(case: Any, where: str) -> None:
    _check.string(_check.mapping(case, where), "prompt", where)
    _check.integer(case, "seed", where, minimum=0, maximum=2**63 - 1)
