"""Which model families there are, and where the adapter of each lies.

A family is told by class names and its adapter is imported when a pipeline of it is met, so that none is imported
without need, and what a model or its settings are can be asked from below the adapters, which are made of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from scope_runtime.errors import AttachError


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        what: Those of its objects that can be accelerated, for the sentence about one that cannot.
        classes: Starts of class names, one of which is in the ancestry of every such object.
        module: Of its adapter, in `scope_runtime.adapters`.
        attachment: The adapter: the class of its attachments, see `scope_runtime.adapters.Adapter`.
        one_block: Whether a window is always one block, all of whose frames take every step together.
    """

    what: str
    classes: tuple[str, ...]
    module: str
    attachment: str
    one_block: bool = False


FAMILIES = (
    Family(
        "SkyReels-V2 diffusion-forcing pipelines of diffusers",
        ("SkyReelsV2DiffusionForcing",),
        "skyreels_v2",
        "SkyReelsV2Attachment",
    ),
    Family("MAGI-1's own model or pipeline", ("VideoDiTModel", "MagiPipeline"), "magi_1", "Magi1Attachment"),
    Family("HeliosPipeline of diffusers", ("HeliosPipeline",), "helios", "HeliosAttachment", one_block=True),
    Family(
        "HunyuanVideoFramepackPipeline of diffusers",
        ("HunyuanVideoFramepack",),
        "framepack",
        "FramepackAttachment",
        one_block=True,
    ),
)

# Relatives of these families that cannot be accelerated: starts of class names, and why.
_REFUSED = {
    "HeliosPyramid": "its stages denoise at resolutions of their own, so that outputs of one are none of the next; "
    "HeliosPipeline (Helios-Base) is accelerated",
}


def family_of(names: Sequence[str]) -> Family | None:
    """The family of an object by the names of its class and of those above it; None if it belongs to none."""
    return next((family for family in FAMILIES if any(name.startswith(family.classes) for name in names)), None)


def adapter_class(pipe: Any) -> Any:
    """The adapter for a pipeline or a model; `scope_runtime.adapters.adapter_for` gives it with its type.

    Raises:
        AttachError: If it belongs to no known family.
    """
    names = [cls.__name__ for cls in type(pipe).__mro__]
    family = family_of(names)
    if family is not None:
        return getattr(import_module(f"scope_runtime.adapters.{family.module}"), family.attachment)
    for start, why in _REFUSED.items():
        if any(name.startswith(start) for name in names):
            raise AttachError(f"{type(pipe).__name__} cannot be accelerated: {why}")
    *others, last = (family.what for family in FAMILIES)
    known = f"{', '.join(others)} and {last}"
    raise AttachError(f"{type(pipe).__name__} is not a pipeline that scope_runtime knows: it accelerates {known}")
