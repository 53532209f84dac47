"""The way in: attach a profile, a bare policy or exact mode to a pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal

from scope_runtime.adapters import Attachment, adapter_for
from scope_runtime.context import ContextOptions
from scope_runtime.engine import Pilot, Recorder
from scope_runtime.errors import ProfileMismatch, ScopeWarning
from scope_runtime.policy import Policy
from scope_runtime.preparation import prepare as prepared
from scope_runtime.profile import Profile
from scope_runtime.report import Report
from scope_runtime.settings import Settings

_MEND = "Take that back, or attach again to have the model checked anew."

OnMismatch = Literal["exact", "raise"]


class Scope:
    """An accelerated pipeline, until closed. Leaving the ``with`` block (or `close`) restores stock behaviour."""

    def __init__(self, attachment: Attachment, give_back: Callable[[], None] = lambda: None) -> None:
        self._attachment = attachment
        self._give_back = give_back

    @property
    def report(self) -> Report:
        """What the last generation did; empty before the first."""
        return self._attachment.report

    @property
    def plan(self) -> tuple[str, ...] | None:
        """The whole plan of the window that runs or ran last: one string per row, one letter per block.

        Known before the window's first row (MAGI-1: after it). None in exact mode, with the content indicator, and
        before a generation.
        """
        windows = self.report.windows
        return windows[-1].plan if windows else None

    def close(self) -> None:
        """Gives the pipeline back as it was; harmless when called twice."""
        try:
            self._attachment.detach()
        finally:
            self._give_back()

    def __enter__(self) -> Scope:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def apply_scope(
    pipe: Any,
    profile: Profile,
    *,
    on_mismatch: OnMismatch = "exact",
    prepare: bool = False,
    offload_context: bool = False,
    max_context_bytes: int | None = None,
) -> Scope:
    """Accelerates a pipeline with a calibrated profile.

    Args:
        pipe: A SkyReels-V2 diffusion-forcing pipeline, a `HeliosPipeline` or a `HunyuanVideoFramepackPipeline` of
            diffusers, or MAGI-1's ``MagiPipeline`` or model. A ``MagiPipeline`` loads its model when it runs, so that
            is when the model is checked.
        profile: From `Profile.load`.
        on_mismatch: What to do when a call's settings are not the calibrated ones, or the model has been changed since
            attaching: run it ``"exact"`` (no skipping) with a `ScopeWarning` that says what differs, or ``"raise"``
            `ProfileMismatch`.
        prepare: Set the pipeline up as the profile asks (attention backend, weights, compiled blocks; see
            `scope_runtime.Preparation`), and give it back as it was on closing. Without it, what is not so is a setting
            that is not the calibrated one.
        offload_context: Keep captured context in host memory; slower, exact.
        max_context_bytes: Refuse a generation whose context would take more, before it starts.

    Returns:
        A context manager whose ``report`` tells what each generation did.

    Raises:
        ProfileMismatch: If the model is not the one the profile was calibrated on.
        AttachError: If the pipeline cannot be accelerated as it stands, or cannot be set up as the profile asks.
    """
    if on_mismatch not in ("exact", "raise"):
        raise ValueError(f"on_mismatch must be 'exact' or 'raise', not {on_mismatch!r}")
    adapter = adapter_for(pipe)

    def policy_for(actual: Settings, changes: Sequence[str]) -> tuple[Policy | None, str]:
        found = profile.settings.mismatches(actual)
        if not found and not changes:
            return profile.policy, ""
        said = [f"The model is not as it was calibrated: {'; '.join(changes)}. {_MEND}"] if changes else []
        said += [f"Settings are not the calibrated ones: {'; '.join(found)}."] if found else []
        message = " ".join(said)
        if on_mismatch == "raise":
            raise ProfileMismatch("model" if changes else f"settings.{found[0].split(' ', 1)[0]}", message)
        message += " Running exact, without skipping."
        warnings.warn(message, ScopeWarning, stacklevel=2)
        return None, message

    context = ContextOptions(offload_context, max_context_bytes)
    preparation = profile.settings.preparation
    if not (prepare and preparation):
        return Scope(adapter(pipe, policy_for, check=profile.check_model, context=context))
    profile.check_model(pipe)
    with ExitStack() as undo:
        undo.enter_context(prepared(pipe, preparation))
        # Checked as it was; from here on every generation is held to what the preparation made of it.
        attachment = adapter(pipe, policy_for, check=lambda _: None, context=context)
        return Scope(attachment, undo.pop_all().close)


def run_policy(
    pipe: Any,
    policy: Policy,
    *,
    pilot: Pilot | None = None,
    offload_context: bool = False,
    max_context_bytes: int | None = None,
) -> Scope:
    """Accelerates a pipeline with a bare policy, whatever its settings: what calibration uses to try candidates.

    Gap weights alone say what settings they are for: a call with others raises `ProfileMismatch`.

    Args:
        pipe: A pipeline of a known family.
        policy: The rules.
        pilot: Says what blocks hand over, in place of the policy; which are recomputed is the policy's all the same.
        offload_context: Keep captured context in host memory; slower, the same result.
        max_context_bytes: Refuse a generation whose context would take more, before it starts.
    """

    def policy_for(actual: Settings, changes: Sequence[str]) -> tuple[Policy, str]:
        policy.check_settings(actual)
        return policy, ""

    context = ContextOptions(offload_context, max_context_bytes)
    return Scope(adapter_for(pipe)(pipe, policy_for, pilot=pilot, context=context))


def exact(
    pipe: Any,
    *,
    observe: bool = False,
    recorder: Recorder | None = None,
    offload_context: bool = False,
    max_context_bytes: int | None = None,
) -> Scope:
    """Leaves out only what cannot change the result: needs no profile.

    Under block-causal attention (``causal_block_size`` above 1), blocks that have not started are not computed, and
    complete blocks are computed once and then serve as context; latents equal stock up to rounding. Under
    bidirectional attention, and so within the chunks of Helios and FramePack, nothing can be left out; the report says
    so.

    Args:
        pipe: A pipeline of a known family.
        observe: Also record how far indicators and outputs moved in every row (``report.observations``).
        recorder: Told of every row's outputs while observing.
        offload_context: Keep captured context in host memory; slower, exact.
        max_context_bytes: Refuse a generation whose context would take more, before it starts.
    """
    context = ContextOptions(offload_context, max_context_bytes)
    adapter = adapter_for(pipe)
    return Scope(adapter(pipe, lambda *_: (None, ""), observe=observe, recorder=recorder, context=context))
