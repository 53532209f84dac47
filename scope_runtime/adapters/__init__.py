"""One file per model family: the only places that know how a pipeline is built inside.

An adapter is a class whose instances hold a pipeline accelerated until `detach`; see `Adapter`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from scope_runtime.errors import AttachError

if TYPE_CHECKING:
    from scope_runtime.context import ContextOptions
    from scope_runtime.engine import Recorder
    from scope_runtime.identity import ModelIdentity
    from scope_runtime.policy import Policy
    from scope_runtime.report import Report
    from scope_runtime.settings import Settings

    PolicyFor = Callable[[Settings, Sequence[str]], tuple[Policy | None, str]]
    """Chooses the policy (None = exact) for a generation, with a note on why, or an empty string. It is told the
    generation's real settings and, where the model was checked, in what it is no longer the model that was checked:
    one phrase per change, beginning with what it is about."""


class Attachment(Protocol):
    """A pipeline held accelerated.

    At the start of every generation it looks at what really runs, in one place: what it cannot run exactly either is
    refused by name, before anything is computed; anything else that is not as promised is told to the `PolicyFor`.
    """

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
        """Attaches; raises `AttachError` if the pipeline cannot be accelerated as it stands.

        With a ``check`` the model is held to what was checked: see `PolicyFor`.
        """

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
