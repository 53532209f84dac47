"""One file per model family: the only places that know how a pipeline is built inside.

An adapter is a class whose instances hold a pipeline accelerated until `detach`; see `Adapter`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from scope_runtime.errors import AttachError

if TYPE_CHECKING:
    from scope_runtime.context import ContextOptions
    from scope_runtime.engine import Recorder
    from scope_runtime.policy import Policy
    from scope_runtime.profile import ModelIdentity, Settings
    from scope_runtime.report import Report

    PolicyFor = Callable[[Settings], tuple[Policy | None, str]]
    """Chooses the policy (None = exact) for a generation from its real settings, with a note on why, or an empty
    string."""


class Attachment(Protocol):
    """A pipeline held accelerated."""

    report: Report

    def detach(self) -> None:
        """Gives the pipeline back as it was; harmless when called twice."""


class Adapter(Protocol):
    """What a model family offers: the class of its attachments."""

    def __call__(
        self,
        pipe: Any,
        policy_for: PolicyFor,
        *,
        check: Callable[[Any], None] | None = None,
        observe: bool = False,
        recorder: Recorder | None = None,
        context: ContextOptions | None = None,
    ) -> Attachment:
        """Attaches; raises `AttachError` if the pipeline cannot be accelerated as it stands."""

    def identity(self, pipe: Any) -> ModelIdentity:
        """Which model a pipeline runs."""

    def settings(self, pipe: Any, **call: Any) -> Settings:
        """What a call of the pipeline would run with."""


# Start of a class name anywhere in a pipeline's ancestry, module, attachment: no family is imported without need.
_FAMILIES = (
    ("SkyReelsV2DiffusionForcing", "skyreels_v2", "SkyReelsV2Attachment"),
    ("VideoDiTModel", "magi_1", "Magi1Attachment"),
    ("MagiPipeline", "magi_1", "Magi1Attachment"),
)


def adapter_for(pipe: Any) -> Adapter:
    """The adapter for a pipeline, or for a MAGI-1 model.

    Raises:
        AttachError: If it belongs to no known family.
    """
    names = [cls.__name__ for cls in type(pipe).__mro__]
    for start, module, attachment in _FAMILIES:
        if any(name.startswith(start) for name in names):
            return cast(Adapter, getattr(import_module(f"{__name__}.{module}"), attachment))
    raise AttachError(
        f"{type(pipe).__name__} is not a pipeline that scope_runtime knows: it accelerates SkyReels-V2 "
        "diffusion-forcing pipelines of diffusers and MAGI-1's own model or pipeline"
    )
