"""Pipelines that make a video chunk by chunk, each in a denoising loop of its own, after the clean ones before it.

One window per chunk, and one block in it: within a chunk attention is bidirectional, so that nothing can be left out of
a step that is computed, and exact mode is stock. What is saved are whole steps, by a policy.

Besides what every diffusers pipeline has (`scope_runtime.adapters._diffusers`), two places are touched while attached:

- ``set_timesteps`` of the scheduler is shadowed on the instance. It fires once per chunk, before its first step: there
  the state of a window is born.
- ``__deepcopy__`` of the scheduler, so that its copies are copies of the stock scheduler.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from scope_runtime.adapters._calls import Shadow
from scope_runtime.adapters._diffusers import HOOK, DiffusersAttachment
from scope_runtime.adapters._preparing import preparation_of
from scope_runtime.adapters._running import describe_scheduler, dtype_of, lora_scale, refuse_kind, refuse_others
from scope_runtime.context import Pass
from scope_runtime.engine import Engine, Model
from scope_runtime.errors import AttachError, ProfileError
from scope_runtime.policy import Policy
from scope_runtime.schedule import Schedule
from scope_runtime.settings import Settings

_NOTE = "Attention within a chunk is bidirectional: nothing can be left out of a computed step."


class _Call:
    """One transformer call as the engine sees it.

    Args:
        attachment: Of the family.
        forward: The transformer's own forward.
        arguments: The call's arguments by name.
    """

    def __init__(self, attachment: ChunkedAttachment, forward: Callable[..., Any], arguments: dict[str, Any]) -> None:
        self.attachment = attachment
        self.forward_stock = forward
        self.arguments = arguments

    def forward(self, request: Pass) -> dict[int, torch.Tensor]:
        """Runs the chunk as the pipeline would; see `scope_runtime.engine.Model`."""
        return {0: self.forward_stock(**{**self.arguments, "return_dict": False})[0]}

    def modulated_input(self, blocks: tuple[int, ...]) -> dict[int, torch.Tensor]:
        """First block's input after timestep modulation, of the chunk itself, ``[batch, tokens, dim]``."""
        return {0: self.attachment.modulated_input(self.arguments)}

    def state(self, block: int) -> torch.Tensor:
        """The chunk's latents ``[batch, channels, frames, h, w]``."""
        hidden: torch.Tensor = self.arguments["hidden_states"]
        return hidden


class ChunkedAttachment(DiffusersAttachment):
    """Holds a chunk-by-chunk pipeline accelerated until `detach`; see `DiffusersAttachment`.

    Attributes:
        kind: Class of the transformer.
    """

    kind: ClassVar[type[torch.nn.Module]]
    # What is held of the pipeline besides; None once it was given back.
    _scheduler: Any = None

    # What a family says.

    @staticmethod
    @abstractmethod
    def layers(transformer: Any) -> Collection[torch.nn.Module]:
        """What in the transformer a cache can stand in for: its blocks, their attention and feed-forward layers."""

    @abstractmethod
    def modulated_input(self, arguments: Mapping[str, Any]) -> torch.Tensor:
        """First block's input after timestep modulation ``[batch, tokens, dim]``, without the history's tokens."""

    @staticmethod
    @abstractmethod
    def guidance_scale(call: Mapping[str, Any]) -> float:
        """By how much the branch with the prompt outweighs the one without; at most 1 where there is none."""

    @staticmethod
    @abstractmethod
    def options(call: Mapping[str, Any]) -> dict[str, Any]:
        """What else in a call changes the denoising, as plain JSON; see `Settings.options`."""

    @staticmethod
    @abstractmethod
    def planned(pipe: Any, call: Mapping[str, Any], frames: int) -> Any:
        """A copy of the pipeline's scheduler with the noise levels of a chunk of so many latent frames."""

    # Attached, and detached.

    def _refuse(self, transformer: Any, *, held: bool) -> list[str]:
        refuse_kind(transformer, self.kind, HOOK, held=held)
        scheduler = self.pipe.scheduler
        if scheduler is not self._scheduler and "__deepcopy__" in vars(scheduler):
            raise AttachError(
                "pipe.scheduler is that of another accelerated pipeline, whose chunks begin with it: give this one its "
                "own, type(pipe.scheduler).from_config(pipe.scheduler.config)"
            )
        return refuse_others(transformer, self.layers(transformer), HOOK, self if held else None)

    def _hold_pipeline(self) -> None:
        scheduler = self.pipe.scheduler
        stock = scheduler.set_timesteps

        @functools.wraps(stock)  # pipelines look at its signature
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            result = stock(*args, **kwargs)
            self._begin_chunk()
            return result

        self._scheduler = scheduler
        self._births = Shadow(scheduler, "set_timesteps", set_timesteps)
        self._scheduler_copies = Shadow(
            scheduler, "__deepcopy__", lambda memo: copy.deepcopy(self._stock_scheduler(), memo)
        )

    def _release_pipeline(self) -> None:
        self._births.remove()
        self._scheduler_copies.remove()
        self._scheduler = None

    def _stock_scheduler(self) -> Any:
        """A shallow copy of the scheduler as it is without this."""
        scheduler = copy.copy(self._scheduler)
        self._births.undo(scheduler)
        self._scheduler_copies.undo(scheduler)
        return scheduler

    @classmethod
    def settings(cls, pipe: Any, **call: Any) -> Settings:
        """The settings that ``pipe(**call)`` would run with; arguments left out take the pipeline's defaults."""
        signature = inspect.signature(type(pipe).__call__)
        given = {name: parameter.default for name, parameter in signature.parameters.items()} | call
        frames = cls.chunk_frames(given)
        return cls._settings_of(pipe, given, cls.planned(pipe, given, frames), frames, given["height"], given["width"])

    @classmethod
    def _settings_of(
        cls, pipe: Any, call: Mapping[str, Any], scheduler: Any, frames: int, height: int, width: int
    ) -> Settings:
        """Settings of a call with a scheduler that is set: latent frames of a chunk, height and width in pixels."""
        return Settings(
            height=height,
            width=width,
            num_frames=(frames - 1) * pipe.vae_scale_factor_temporal + 1,
            num_inference_steps=len(scheduler.timesteps),
            guidance_scale=cls.guidance_scale(call),
            ar_step=0,
            causal_block_size=frames,
            dtype=dtype_of(pipe),
            scheduler=describe_scheduler(scheduler),
            lora_scale=lora_scale(pipe.transformer, call["attention_kwargs"]),
            options=cls.options(call),
        )

    @staticmethod
    @abstractmethod
    def chunk_frames(call: Mapping[str, Any]) -> int:
        """Latent frames of a chunk."""

    # What really runs.

    def look(self) -> None:
        """See `DiffusersAttachment.look`."""
        # An exception may have ended the generation before without telling.
        self._forget(self._plan)
        super().look()
        if not self._births.in_place or self.pipe.scheduler is not self._scheduler:
            self._release_pipeline()
            self._hold_pipeline()

    # A generation, in the order of events.

    def _begin_chunk(self) -> None:
        """The scheduler has been set: a chunk begins, if the pipeline runs."""
        if self._scheduler is None:
            return  # others have kept what stood in for its method
        if not self._gate.in_place:
            raise AttachError(
                "pipe.check_inputs was replaced while the pipeline was accelerated, so its calls are not known: close "
                "the scope and attach again"
            )
        if self._gate.busy and self._gate.arguments:
            self._begin({"calls": 0})

    def _call(self, forward: Callable[..., Any], arguments: dict[str, Any], engine: Engine) -> Model:
        if self.pipe.scheduler is not self._scheduler:
            raise AttachError("pipe.scheduler was replaced in the middle of a generation: do that before or after")
        return _Call(self, forward, arguments)

    def _new_engine(self, arguments: dict[str, Any]) -> Engine:
        scheduler = self._scheduler
        steps, sigmas = len(scheduler.timesteps), [float(sigma) for sigma in scheduler.sigmas[:-1]]
        if len(sigmas) != steps:
            raise AttachError(
                f"the pipeline's {type(scheduler).__name__} has {len(sigmas)} noise levels for {steps} steps: take a "
                "scheduler that computes the model once per step"
            )
        schedule = Schedule.of_one_block(sigmas, arguments["hidden_states"].shape[2])
        return self._engine_of(schedule, self._settings(arguments), notes=(_NOTE,))

    def _settings(self, arguments: Mapping[str, Any]) -> Settings:
        """What is really being run, read off the scheduler and the tensors as far as they tell."""
        *_, frames, height, width = arguments["hidden_states"].shape
        scale = self.pipe.vae_scale_factor_spatial
        told = self._settings_of(
            self.pipe, self._gate.arguments, self._stock_scheduler(), frames, height * scale, width * scale
        )
        return replace(told, preparation=preparation_of(self.transformer))

    def _check_policy(self, policy: Policy) -> None:
        for field in ("context_window", "context_dtype"):
            if getattr(policy, field) is not None:
                raise ProfileError(
                    f"policy.{field}", "must be null: a chunk sees the ones before it as latents, no context is kept"
                )


def as_planned(
    pipe: Any,
    call: Mapping[str, Any],
    frames: int,
    latents_per_token: int,
    calculate_shift: Callable[..., float],
    *,
    start: float,
    most: float = math.inf,
) -> Any:
    """A copy of a pipeline's scheduler, set as the pipeline sets it before every chunk.

    Args:
        pipe: The pipeline.
        call: Its call's arguments.
        frames: Latent frames of a chunk.
        latents_per_token: Of the transformer's patches.
        calculate_shift: The pipeline's own way from the number of tokens to the shift.
        start: The first noise level, where the call names none.
        most: Where the shift ends.
    """
    scheduler = copy.deepcopy(pipe.scheduler)
    sigmas = call["sigmas"]
    if sigmas is None:
        sigmas = torch.linspace(start, 0.0, call["num_inference_steps"] + 1, dtype=torch.float64)[:-1].numpy()
    height, width = (call[name] // pipe.vae_scale_factor_spatial for name in ("height", "width"))
    config = scheduler.config
    shift = calculate_shift(
        frames * height * width // latents_per_token,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    scheduler.set_timesteps(len(sigmas), device="cpu", sigmas=sigmas, mu=min(shift, most))
    return scheduler
