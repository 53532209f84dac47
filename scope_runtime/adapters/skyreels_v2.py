"""SkyReels-V2 diffusion forcing in diffusers: where the runtime meets the pipeline, without a fork.

Besides what every diffusers pipeline has (`scope_runtime.adapters._diffusers`), two places are touched while attached:

- ``pipe.generate_timestep_matrix`` is shadowed on the instance. It fires once per generation and once per long-video
  window and hands over the whole plan in advance: there the state of a window is born.
- the self-attention processors attend to the captured context. Outside a running pass they step aside for the
  original processor.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from scope_runtime.adapters._calls import Shadow
from scope_runtime.adapters._diffusers import HOOK, DiffusersAttachment
from scope_runtime.adapters._hooks import loaded
from scope_runtime.adapters._preparing import preparation_of
from scope_runtime.adapters._running import describe_scheduler, dtype_of, lora_scale
from scope_runtime.adapters._skyreels_v2_attention import PrefixAttention
from scope_runtime.adapters._skyreels_v2_running import refuse, windows_of_call
from scope_runtime.context import Pass, context_bytes
from scope_runtime.engine import Engine, Model
from scope_runtime.errors import AttachError
from scope_runtime.policy import Policy, needs_stale_context
from scope_runtime.schedule import Phase, Schedule
from scope_runtime.settings import Settings

if TYPE_CHECKING:
    from scope_runtime.adapters import PolicyFor


class _Call:
    """One transformer call as the engine sees it.

    Args:
        attachment: Where the pass in progress is announced to the attention processors.
        forward: The transformer's own forward.
        arguments: The call's arguments by name.
        block_frames: Latent frames per block.
    """

    def __init__(
        self,
        attachment: SkyReelsV2Attachment,
        forward: Callable[..., Any],
        arguments: dict[str, Any],
        block_frames: int,
    ) -> None:
        self.attachment = attachment
        self.forward_stock = forward
        self.arguments = arguments
        self.block_frames = block_frames

    def _select(self, tensor: torch.Tensor, blocks: tuple[int, ...], dim: int) -> torch.Tensor:
        """The given blocks of a tensor whose dimension ``dim`` counts latent frames."""
        first, last = blocks[0], blocks[-1]
        if last - first + 1 == len(blocks):
            return tensor.narrow(dim, first * self.block_frames, len(blocks) * self.block_frames)
        return torch.cat([tensor.narrow(dim, b * self.block_frames, self.block_frames) for b in blocks], dim=dim)

    def forward(self, request: Pass) -> dict[int, torch.Tensor]:
        """Runs the blocks of ``request``; see `scope_runtime.engine.Model`."""
        hidden = self.arguments["hidden_states"]
        arguments = self.arguments | {
            "hidden_states": self._select(hidden, request.blocks, dim=2),
            "timestep": self._select(self.arguments["timestep"], request.blocks, dim=1),
            "return_dict": False,
        }
        with self.attachment.running(request, hidden, self.block_frames):
            output = self.forward_stock(**arguments)[0]
        parts = output.split(self.block_frames, dim=2)
        return dict(zip(request.blocks, parts, strict=True))

    def state(self, block: int) -> torch.Tensor:
        """The block's latents ``[batch, channels, frames, h, w]``."""
        return self._select(self.arguments["hidden_states"], (block,), dim=2)

    def modulated_input(self, blocks: tuple[int, ...]) -> dict[int, torch.Tensor]:
        """First block's input after timestep modulation, ``[batch, tokens, dim]`` per block."""
        model = self.attachment.transformer
        with loaded(model, model.blocks[0]):
            return self._modulated_input(model, blocks)

    def _modulated_input(self, model: Any, blocks: tuple[int, ...]) -> dict[int, torch.Tensor]:
        first, embedder = model.blocks[0], model.condition_embedder
        hidden = model.patch_embedding(self._select(self.arguments["hidden_states"], blocks, dim=2))
        timestep = self._select(self.arguments["timestep"], blocks, dim=1)
        frequencies = embedder.timesteps_proj(timestep).to(next(embedder.time_embedder.parameters()).dtype)
        temb = embedder.time_embedder(frequencies).type_as(hidden)
        modulation = embedder.time_proj(embedder.act_fn(temb)).unflatten(-1, (6, -1)).float()
        shift, scale = (first.scale_shift_table.unsqueeze(0) + modulation)[:, :, :2].unbind(2)
        tokens = hidden.flatten(3).permute(0, 2, 3, 1)  # [batch, frames, tokens per frame, dim]
        normed = first.norm1(tokens.float())
        modulated = normed * (1 + scale.unsqueeze(2)) + shift.unsqueeze(2)
        parts = modulated.split(self.block_frames, dim=1)
        return {block: part.flatten(1, 2) for block, part in zip(blocks, parts, strict=True)}


class SkyReelsV2Attachment(DiffusersAttachment):
    """Holds a SkyReels-V2 diffusion-forcing pipeline accelerated until `detach`; see `DiffusersAttachment`."""

    def __init__(self, pipe: Any, policy_for: PolicyFor, **options: Any) -> None:
        self.current_pass: Pass | None = None
        self.attends_to_prefix = False
        self._rotary: torch.Tensor | None = None
        self._rotary_tables: dict[tuple[int, ...], torch.Tensor] = {}
        super().__init__(pipe, policy_for, **options)

    def _refuse(self, transformer: Any, *, held: bool) -> list[str]:
        return refuse(transformer, HOOK, *((self, self._processors) if held else ()))

    def _hold_pipeline(self) -> None:
        self._generate_timestep_matrix = self.pipe.generate_timestep_matrix
        self._matrix = Shadow(self.pipe, "generate_timestep_matrix", self._begin_window)

    def _release_pipeline(self) -> None:
        self._matrix.remove()

    def _hold_layers(self) -> None:
        transformer = self.transformer
        self._rope_hook = transformer.rope.register_forward_hook(self._replace_rotary)
        self._attention = [block.attn1 for block in transformer.blocks]
        self._processors = [
            PrefixAttention(self, layer, attention.processor) for layer, attention in enumerate(self._attention)
        ]
        for attention, processor in zip(self._attention, self._processors, strict=True):
            attention.set_processor(processor)

    def _release_layers(self) -> None:
        self._rope_hook.remove()
        for attention, processor in zip(self._attention, self._processors, strict=True):
            if attention.processor is processor:
                attention.set_processor(processor.original)

    @staticmethod
    def settings(pipe: Any, **call: Any) -> Settings:
        """The settings that ``pipe(**call)`` would run with; arguments left out take the pipeline's defaults."""
        signature = inspect.signature(type(pipe).__call__)
        given = {name: parameter.default for name, parameter in signature.parameters.items()} | call
        block = given["causal_block_size"] or pipe.transformer.config.num_frame_per_block
        scheduler = copy.deepcopy(pipe.scheduler)
        scheduler.set_timesteps(given["num_inference_steps"])
        first, last, ready = windows_of_call(pipe, given, block)
        return Settings(
            height=given["height"],
            width=given["width"],
            num_frames=first,
            num_inference_steps=given["num_inference_steps"],
            guidance_scale=float(given["guidance_scale"]),
            ar_step=given["ar_step"],
            causal_block_size=block,
            dtype=dtype_of(pipe),
            scheduler=describe_scheduler(scheduler),
            prefix=ready > 0,
            # A prefix shorter than a block is not kept, so that its noise does not matter.
            noised_prefix=ready >= block and given["addnoise_condition"] > 0,
            lora_scale=lora_scale(pipe.transformer, given["attention_kwargs"]),
            last_num_frames=None if last == first else last,
        )

    def look(self) -> None:
        """See `DiffusersAttachment.look`."""
        if not self._matrix.in_place:
            raise AttachError(
                "pipe.generate_timestep_matrix was replaced while the pipeline was accelerated, so its plan is not "
                "known: close the scope and attach again"
            )
        super().look()

    # A generation, in the order of events.

    def _begin_window(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the pipeline's own method: passes its plan on and remembers it."""
        result = self._generate_timestep_matrix(*args, **kwargs)
        # Of the class: others may have put something with another signature in its place.
        bound = inspect.signature(type(self.pipe).generate_timestep_matrix).bind(None, *args, **kwargs)
        bound.apply_defaults()
        step_matrix, step_index, update, _ = result
        plan = {**bound.arguments, "step_index": step_index, "update": update}
        self._begin(plan)
        self._rotary_tables = {}
        # The pipeline holds the matrix as long as the window runs, also when an exception ends it.
        weakref.finalize(step_matrix, self._forget, plan).atexit = False
        return result

    def _forget(self, plan: dict[str, Any] | None) -> None:
        if self._plan is plan:
            self._rotary_tables = {}
        super()._forget(plan)

    def _call(self, forward: Callable[..., Any], arguments: dict[str, Any], engine: Engine) -> Model:
        return _Call(self, forward, arguments, engine.schedule.block_frames)

    def _new_engine(self, arguments: dict[str, Any]) -> Engine:
        plan = self._plan
        assert plan is not None
        block_frames = plan["causal_block_size"]
        # Attention is block-causal by the transformer's config, whatever the plan's blocks are.
        causal = self.transformer.config.num_frame_per_block > 1
        schedule = Schedule.from_step_index(
            step_index=plan["step_index"][:, ::block_frames].tolist(),
            update=plan["update"][:, ::block_frames].tolist(),
            sigmas=self.pipe.scheduler.sigmas[: len(plan["step_template"])].tolist(),
            block_frames=block_frames,
            causal=causal,
        )
        # The condition noise of long video re-noises the prefix in every row and says so in its timestep.
        volatile = frozenset(
            b
            for b, t in enumerate(arguments["timestep"][0, ::block_frames].tolist())
            if t != 0 and schedule.phase[0][b] is Phase.COMPLETE
        )
        notes = []
        if not causal:
            notes.append("Attention is bidirectional (causal_block_size 1): nothing can be left out of a computed row.")
        if volatile:
            notes.append("addnoise_condition noises the prefix anew in every row: its context cannot be reused.")
        if self._altering:
            notes.append(f"Exact only where every token is treated alike by {', '.join(self._altering)}.")
        return self._engine_of(
            schedule,
            self._settings(arguments, plan, bool(volatile)),
            volatile=volatile,
            context_bytes=lambda policy: self._context_bytes(schedule, policy, arguments["hidden_states"]),
            notes=tuple(notes),
        )

    def _context_bytes(self, schedule: Schedule, policy: Policy | None, hidden: torch.Tensor) -> int:
        """What the context of this window will take at most."""
        if not schedule.causal:
            return 0
        config = self.transformer.config
        _, patch_height, patch_width = config.patch_size
        patches = (hidden.shape[3] // patch_height) * (hidden.shape[4] // patch_width)
        blocks = schedule.blocks - 1  # nothing comes after the last
        if policy is not None and not needs_stale_context(policy, schedule) and policy.context_window is not None:
            # A block is captured before the window lets go of the oldest.
            blocks = min(blocks, policy.context_window + 1)
        stored = policy.context_dtype if policy is not None else None
        return context_bytes(
            layers=len(self.transformer.blocks),
            width=config.num_attention_heads * config.attention_head_dim,
            tokens=schedule.block_frames * patches,
            blocks=blocks,
            branches=2 if self.pipe.do_classifier_free_guidance else 1,
            batch=hidden.shape[0],
            itemsize=(getattr(torch, stored) if stored else hidden.dtype).itemsize,
        )

    def _settings(self, arguments: dict[str, Any], plan: dict[str, Any], noised_prefix: bool) -> Settings:
        """What is really being run, read from the plan and the tensors rather than from what somebody asked for."""
        *_, frames, height, width = arguments["hidden_states"].shape
        pipe = self.pipe
        return Settings(
            height=height * pipe.vae_scale_factor_spatial,
            width=width * pipe.vae_scale_factor_spatial,
            num_frames=(frames - 1) * pipe.vae_scale_factor_temporal + 1,
            num_inference_steps=len(plan["step_template"]),
            guidance_scale=float(pipe.guidance_scale),
            ar_step=plan["ar_step"],
            causal_block_size=plan["causal_block_size"],
            prefix=plan["num_pre_ready"] > 0,
            noised_prefix=noised_prefix,
            dtype=dtype_of(pipe),
            scheduler=describe_scheduler(pipe.scheduler),
            lora_scale=lora_scale(self.transformer, pipe.attention_kwargs),
            preparation=preparation_of(self.transformer),
        )

    # What happens inside one pass.

    def _replace_rotary(self, module: torch.nn.Module, args: Any, output: Any) -> Any:
        return output if self._rotary is None else self._rotary

    @contextmanager
    def running(self, request: Pass, hidden: torch.Tensor, block_frames: int) -> Iterator[None]:
        """Announces a pass to the attention processors and to the rotary embedding."""
        model = self.transformer
        causal_block_size = model.config.num_frame_per_block
        self.current_pass = request
        self.attends_to_prefix = request.causal
        if request.causal:
            self._rotary = self._rotary_of(request.blocks, hidden, block_frames)
            # At block size 1 the model builds no mask; the processors keep causality by the keys they attend to.
            model._set_ar_attention(1)
        try:
            yield
        finally:
            model._set_ar_attention(causal_block_size)
            self.current_pass, self.attends_to_prefix = None, False
            self._rotary = None

    def _rotary_of(self, blocks: tuple[int, ...], hidden: torch.Tensor, block_frames: int) -> torch.Tensor:
        """Rotary factors of the absolute frames of ``blocks``: complex ``[1, tokens, 1, head_dim / 2]``."""
        if blocks not in self._rotary_tables:
            with loaded(self.transformer):
                cos, sin = self.transformer.rope(hidden)  # reads only the shape of its input
            table = torch.complex(cos[..., 0::2].float(), sin[..., 1::2].float())
            tokens = table.shape[1] * block_frames // hidden.shape[2]
            self._rotary_tables[blocks] = torch.cat([table[:, b * tokens : (b + 1) * tokens] for b in blocks], dim=1)
        return self._rotary_tables[blocks]
