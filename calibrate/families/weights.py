"""Weights in safetensors files: which there are, and how many numbers they hold; nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calibrate.errors import CalibrateError


def indexed_weights(index: Path, field: str = "model.path") -> list[Path]:
    """The shards that an index names; none where there is no index.

    Args:
        index: The file.
        field: Of the study, which a message names.

    Raises:
        CalibrateError: If a shard is missing, or the index is damaged.
    """
    if not index.is_file():
        return []
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        shards = sorted(index.parent / name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrateError(f"{field}: {index} is damaged; download it again.") from error
    for shard in shards:
        if not shard.is_file():
            raise CalibrateError(f"{field}: {shard} is missing; download it again.")
    return shards


def stored_parameters(files: list[Path], field: str = "model.path") -> int:
    """How many numbers safetensors files hold, read from their headers.

    Args:
        files: The files.
        field: Of the study, which a message names.

    Raises:
        CalibrateError: If a file is truncated or damaged.
    """
    return sum(_product(tensor["shape"]) for path in files for tensor in _header(path, field))


def _header(path: Path, field: str) -> Iterator[Mapping[str, Any]]:
    """What a safetensors file says about its tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, path.stat().st_size)))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            end = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
        except (ValueError, KeyError, AttributeError) as error:
            raise CalibrateError(f"{field}: {path} is damaged; download it again.") from error
    if path.stat().st_size < end:
        raise CalibrateError(f"{field}: {path} is truncated; download it again.")
    yield from tensors


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
