"""What all diffusers pipelines have in common while they are held accelerated.

Three places are touched while attached, and restored on detaching; a family touches more:

- ``pipe.check_inputs`` is shadowed on the instance. It is the first thing that a call does: there a call is refused
  while another one runs, and the attachment looks at what really runs.
- a diffusers `ModelHook` on the transformer answers its calls.
- ``__deepcopy__`` of the pipeline and of the transformer, so that copies are copies of the stock pipeline.
"""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.hooks.hooks import BaseState, ModelHook, StateManager
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from scope_runtime.adapters._calls import CallGate, NotCopied, Shadow
from scope_runtime.adapters._hooks import Interception, stored_parameters
from scope_runtime.adapters._preparing import prepared
from scope_runtime.adapters._running import model_config, model_state, refuse_accelerated
from scope_runtime.context import ContextOptions, refuse_if_over
from scope_runtime.digest import config_digest
from scope_runtime.engine import Engine, Model, Pilot, Recorder
from scope_runtime.errors import AttachError
from scope_runtime.identity import ModelIdentity, adapters_of, weights_digest
from scope_runtime.report import Report

if TYPE_CHECKING:
    from scope_runtime.adapters import PolicyFor
    from scope_runtime.policy import Policy
    from scope_runtime.preparation import Preparation
    from scope_runtime.schedule import Schedule
    from scope_runtime.settings import Settings

HOOK = "scope_runtime"


class _NoState(BaseState):
    def reset(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept per cache context; the manager is only there to be told the context's name."""


class _TransformerHook(ModelHook):
    """Hands the transformer's calls to the attachment, which may answer them without running it."""

    _is_stateful = True

    def __init__(self, attachment: DiffusersAttachment) -> None:
        super().__init__()
        self.attachment = attachment
        # diffusers tells every StateManager among a stateful hook's attributes which guidance branch is running.
        self.state_manager = StateManager(_NoState)

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the transformer's forward."""
        context = self.state_manager._context
        forward = self.fn_ref.original_forward
        return self.attachment.answer(context.name if context else None, forward, args, kwargs)

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        """Called by the pipeline as the last thing a generation does."""
        self.attachment.end_generation()
        return module


class DiffusersAttachment(NotCopied):
    """Holds a pipeline accelerated until `detach`. Each family is a subclass.

    Args:
        pipe: A diffusers pipeline of the family.
        policy_for: Chooses the policy of each generation from its real settings.
        check: Refuses a model that is not the calibrated one, before anything is touched. With it, every generation is
            held to what was checked.
        observe: Record indicator and output changes.
        recorder: Told of every row when observing.
        pilot: Says what blocks hand over, in place of the policy.
        context: Where context is kept and how much of it.

    Raises:
        AttachError: If the pipeline is of another kind, already accelerated, or if others have put something on it with
            which not even exact mode is exact.
    """

    def __init__(
        self,
        pipe: Any,
        policy_for: PolicyFor,
        *,
        check: Callable[[Any], None] | None = None,
        observe: bool = False,
        recorder: Recorder | None = None,
        pilot: Pilot | None = None,
        context: ContextOptions | None = None,
    ) -> None:
        self.pipe = pipe
        self.transformer: Any = pipe.transformer
        self.report = Report()
        self._policy_for = policy_for
        self._observe = observe
        self._recorder = recorder
        self._pilot = pilot
        self._context = context or ContextOptions()
        self._engine: Engine | None = None
        # What the family knows of the window that runs; None outside one.
        self._plan: dict[str, Any] | None = None
        self._changes: list[str] = []
        self._altering = self._refuse(pipe.transformer, held=False)
        if check is not None:
            check(pipe)
        self._promised = model_state(pipe.transformer) if check is not None else None
        self._looked = False
        self._take_hold()

    # What a family says.

    @abstractmethod
    def _refuse(self, transformer: Any, *, held: bool) -> list[str]:
        """Refuses a transformer that cannot be run exactly; see `scope_runtime.adapters._running.refuse_others`."""

    @abstractmethod
    def _hold_pipeline(self) -> None:
        """Shadows what tells of a window's birth; `_begin` is what it calls."""

    @abstractmethod
    def _release_pipeline(self) -> None:
        """Takes that back."""

    def _hold_layers(self) -> None:
        """Puts what the family needs inside the transformer."""

    def _release_layers(self) -> None:
        """Takes that back."""

    @abstractmethod
    def _new_engine(self, arguments: dict[str, Any]) -> Engine:
        """The engine of the window that has begun, at its first transformer call; `_engine_of` makes it."""

    @abstractmethod
    def _call(self, forward: Callable[..., Any], arguments: dict[str, Any], engine: Engine) -> Model:
        """A transformer call as the engine sees it."""

    def _check_policy(self, policy: Policy) -> None:
        """Refuses by name what the family cannot do; raises `ProfileError`."""

    def _branch(self, name: str | None, arguments: dict[str, Any]) -> str:
        """The guidance branch of a call, from the cache context's name, where the pipeline says one."""
        return name or "cond"

    # Attached, and detached.

    def _take_hold(self) -> None:
        self._gate = CallGate(self.pipe, self.look)
        self._hold_pipeline()
        self._copies = Shadow(self.pipe, "__deepcopy__", partial(self._copy, self.pipe))
        self._hold_transformer()

    def _hold_transformer(self) -> None:
        transformer = self.transformer
        self._transformer_copies = Shadow(transformer, "__deepcopy__", partial(self._copy, transformer))
        self._interception = Interception(transformer, _TransformerHook(self), HOOK)
        self._hold_layers()

    def detach(self) -> None:
        """Puts back what was there; what others have put there meanwhile stays theirs. Harmless when called twice."""
        self._gate.close()
        self._release_pipeline()
        self._copies.remove()
        self._release_transformer()

    def _release_transformer(self) -> None:
        self._forget(self._plan)
        self._transformer_copies.remove()
        self._interception.remove()
        self._release_layers()

    def _copy(self, original: Any, memo: dict[int, Any]) -> Any:
        """Stands in for ``__deepcopy__``: a copy of the pipeline, or of its transformer, as it is without this."""
        if self._gate.busy:
            raise AttachError("this pipeline is in the middle of a generation: copy it before or after")
        self._refuse(self.transformer, held=True)
        self.detach()
        try:
            return copy.deepcopy(original, memo)
        finally:
            self._take_hold()

    @staticmethod
    def identity(pipe: Any) -> ModelIdentity:
        """Identity of a loaded pipeline."""
        transformer = pipe.transformer
        return ModelIdentity(
            pipeline=type(pipe).__name__,
            transformer=type(transformer).__name__,
            config=config_digest(model_config(transformer)),
            weights=weights_digest(stored_parameters(transformer)),
            adapters=adapters_of(dict(transformer.named_modules())),
        )

    @staticmethod
    def prepare(pipe: Any, preparation: Preparation) -> AbstractContextManager[None]:
        """Sets the pipeline up as asked while the context lasts."""
        refuse_accelerated(pipe.transformer, HOOK)
        return prepared(pipe, preparation)

    # What really runs.

    def look(self) -> None:
        """Looks at what really runs, at the start of every generation and before anything is computed.

        What cannot be run exactly either is refused. Where a model was promised, `_changes` says in what it is another
        one now.
        """
        transformer = self.pipe.transformer
        held = transformer is self.transformer
        self._altering = self._refuse(transformer, held=held)
        if not held:
            self._release_transformer()
            self.transformer = transformer
            self._hold_transformer()
        self._interception.keep()
        if self._promised:
            self._changes = [*self._promised.differences(model_state(transformer)), *self._altering]
        self._looked = True

    # A generation, in the order of events.

    def _begin(self, plan: dict[str, Any]) -> None:
        """A window begins.

        Args:
            plan: What the family wants to know at the window's first transformer call.
        """
        # Every call sets the timestep to None, every row to something else: None here is a new generation, anything
        # else a further window of the one that is running.
        if self.pipe._current_timestep is None:
            if not self._looked:
                self.look()  # others may have put something in the place of `check_inputs`
            self._looked = False
            self.report = Report.begin(self.pipe._execution_device)
        self._interception.keep()
        self._plan = plan
        self._engine = None

    def answer(
        self, context: str | None, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Answers a transformer call: from the engine inside a generation, by the stock forward outside one."""
        if self._plan is None or not self._gate.owns():
            return forward(*args, **kwargs)
        arguments = _bind(forward, args, kwargs)
        if self._engine is None:
            self._engine = self._new_engine(arguments)
        branch, engine = self._branch(context, arguments), self._engine
        outputs = engine.run(branch, self._call(forward, arguments, engine))
        hidden, frames = arguments["hidden_states"], engine.schedule.block_frames
        # Frames that are not active stay zero: the pipeline never reads them.
        sample = hidden.new_zeros(hidden.shape[0], self.transformer.config.out_channels, *hidden.shape[2:])
        for block, output in outputs.items():
            sample[:, :, block * frames : (block + 1) * frames] = output
        self.report.mark(hidden.device)
        if not arguments.get("return_dict", True):
            return (sample,)
        return Transformer2DModelOutput(sample=sample)

    def _engine_of(
        self,
        schedule: Schedule,
        settings: Settings,
        *,
        volatile: frozenset[int] = frozenset(),
        context_bytes: Callable[[Policy | None], int] = lambda policy: 0,
        notes: tuple[str, ...] = (),
    ) -> Engine:
        """The engine of a window, with the policy that is for its settings.

        Args:
            schedule: The window's plan.
            settings: What really runs.
            volatile: See `Engine`.
            context_bytes: What the context will take at most under a policy.
            notes: What the report is to say of the window.
        """
        policy, note = self._policy_for(settings, self._changes)
        if policy is not None:
            policy = policy.of_window(len(self.report.windows))
            self._check_policy(policy)
        refuse_if_over(context_bytes(policy), self._context)
        engine = Engine(
            schedule,
            policy,
            observe=self._observe,
            recorder=self._recorder,
            pilot=self._pilot,
            volatile=volatile,
            offload=self._context.offload,
        )
        engine.report.note = " ".join([*([note] if note else ()), *notes])
        self.report.windows.append(engine.report)
        return engine

    def end_generation(self) -> None:
        """Drops the state of the finished generation; its report stays."""
        self._gate.forget()
        self._forget(self._plan)

    def _forget(self, plan: dict[str, Any] | None) -> None:
        """Drops the state of the window with this plan, unless a later one has taken its place."""
        if self._plan is plan:
            self._engine = None
            self._plan = None


def _bind(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by name."""
    if not args:
        return kwargs
    return dict(inspect.signature(forward).bind(*args, **kwargs).arguments)
