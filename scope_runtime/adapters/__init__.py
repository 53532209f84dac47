"""One file per model family: the only places that know how a pipeline is built inside.

An adapter is a class whose instances hold a pipeline accelerated until `detach`; see `Adapter`. A new one is a file
here and an entry in `scope_runtime.families`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, cast

from scope_runtime.families import adapter_class

if TYPE_CHECKING:
    from scope_runtime.context import ContextOptions
    from scope_runtime.engine import Pilot, Recorder
    from scope_runtime.identity import ModelIdentity
    from scope_runtime.policy import Policy
    from scope_runtime.preparation import Preparation
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
        pilot: Pilot | None = None,
        context: ContextOptions | None = None,
    ) -> Attachment:
        """Attaches; raises `AttachError` if the pipeline cannot be accelerated as it stands.

        With a ``check`` the model is held to what was checked: see `PolicyFor`.
        """

    def identity(self, pipe: Any) -> ModelIdentity:
        """Which model a pipeline runs."""

    def settings(self, pipe: Any, **call: Any) -> Settings:
        """What a call of the pipeline would run with, as it was loaded."""

    def prepare(self, pipe: Any, preparation: Preparation) -> AbstractContextManager[None]:
        """Sets a pipeline up; see `scope_runtime.preparation.prepare`."""


def adapter_for(pipe: Any) -> Adapter:
    """The adapter for a pipeline or a model.

    Raises:
        AttachError: If it belongs to no known family.
    """
    return cast(Adapter, adapter_class(pipe))
