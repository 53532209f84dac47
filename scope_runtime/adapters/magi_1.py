"""MAGI-1 on its official code (the package ``inference``), unmodified.

One attribute is touched while attached: ``forward_dispatcher`` of the model, shadowed on the instance, which the
denoising loop looks up at every call. What a call means follows from the configuration and from how many calls its
``inference_params`` have seen, so the whole plan is known at the first one. Whether a video is given in part of a chunk
shows only in the second call; until then nothing is skipped by any policy, so that is when the policy is chosen.

Everything that a plan rests on is looked up anew when a generation begins: the configuration, what the environment adds
to it, and how the model combines its guidance branches, which its own dispatcher is asked at no cost
(`refuse_other_guidance`).

Three properties of the official code carry the rest:

- attention is causal over chunks, so a leading part of the window can be computed without the chunks behind it;
- only two kinds of call write keys and values that are read later: the one for whole prefix chunks, and the first of
  every stage, which carries the chunk that was completed last in front. These writes always happen;
- everything else only needs the velocity, so the others may be answered without running the model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from scope_runtime.adapters._calls import NotCopied
from scope_runtime.adapters._magi_1_guidance import (
    CONTEXT,
    PREVIOUS_CHUNKS_SCALE,
    TEXT,
    UNCONDITIONAL,
    Guidance,
    guidance_by_step,
    previous_chunks_scale,
    refuse_other_guidance,
)
from scope_runtime.context import Context, ContextOptions, Pass, context_bytes, refuse_if_over
from scope_runtime.digest import config_digest
from scope_runtime.engine import Engine, Pilot, Recorder
from scope_runtime.errors import AttachError, ProfileError, ScopeError
from scope_runtime.identity import ModelIdentity, ModelState, weights_digest
from scope_runtime.policy import LAST, Policy, needs_stale_context
from scope_runtime.preparation import Preparation
from scope_runtime.report import Report
from scope_runtime.schedule import ALONG, NEEDED, Schedule
from scope_runtime.settings import Scheduler, Settings

if TYPE_CHECKING:
    from scope_runtime.adapters import PolicyFor

_PIXELS_PER_LATENT = 8
_TIME_TOLERANCE = 1e-5
# What one call's velocities are called as a branch of the engine: they are combined before anything is kept of them.
_GUIDED = "guided"
_ABSENT = "."
_USUAL_PREVIOUS_CHUNKS_SCALE = "0.7"


@dataclass(frozen=True)
class Plan:
    """One generation as the official loop will run it.

    Attributes:
        schedule: Noise levels (sigma = 1 - t), active chunks, guidance branches.
        times: ``times[row][chunk]``: t of the active chunks, 0 elsewhere.
        guidance: ``guidance[row][chunk]`` with three branches, for the active chunks; None with one branch.
    """

    schedule: Schedule
    times: tuple[tuple[float, ...], ...]
    guidance: tuple[dict[int, Guidance], ...] | None

    @classmethod
    def of(cls, runtime: Any, engine: Any, num_steps: int, chunks: int, prefix: int) -> Plan:
        """Works out the plan.

        Args:
            runtime: The model's ``runtime_config``.
            engine: The model's ``engine_config``.
            num_steps: Updates per chunk.
            chunks: Chunks of the video, prefix included.
            prefix: Whole chunks that are given.
        """
        window = runtime.window_size
        per_stage = num_steps // window
        grid = time_grid(num_steps, engine.shortcut_mode)
        guided = runtime.cfg_number == 3
        guidance_at = guidance_by_step(runtime, grid[:-1]) if guided else []
        threshold = engine.distill_nearly_clean_chunk_threshold

        steps: list[list[int]] = []
        letters: list[list[str]] = []
        stock: list[int] = []
        guidance: list[dict[int, Guidance]] = []
        regimes: dict[int, list[tuple[int, object]]] = {}
        for stage in range(prefix, chunks + window - 1):
            first, end = max(prefix, stage - window + 1), min(chunks, stage + 1)
            for i in range(per_stage):
                row = len(steps)
                step = {c: (stage - c) * per_stage + i for c in range(first, end)}
                steps.append([num_steps + 1 if c < first else step[c] + 1 if c in step else 0 for c in range(chunks)])
                # A clean chunk is handed over once, in front of the stage's first call.
                clean = [first - 1] if i == 0 and first > prefix else []
                written = [*clean, *(range(prefix) if row == 0 else ())]
                near = not guided and grid[step[first]] > threshold
                if guided:
                    weights = {c: guidance_at[s] for c, s in step.items()}
                    guidance.append(weights)
                    letters.append(
                        [
                            _letters(chunks, {c: g.text != 0 for c, g in weights.items()}, along=clean),
                            _letters(chunks, {c: g.context != 0 for c, g in weights.items()}, needed=written),
                            _letters(chunks, {c: g.unconditional != 0 for c, g in weights.items()}, alone=True),
                        ]
                    )
                    # The unconditional branch leaves out a clean chunk, but not a prefix.
                    stock.append(3 * (len(step) + len(written)) - len(clean))
                else:
                    # The first chunk, once nearly clean, is computed a second time without context and mixed in.
                    letters.append(
                        [
                            _letters(chunks, dict.fromkeys(step, True), needed=written),
                            _letters(chunks, {first: near}, alone=True),
                        ]
                    )
                    stock.append(len(step) + len(written) + near)
                for c, s in step.items():
                    start = _context_start(runtime, c, s, num_steps)
                    regime = (guidance_at[s] if guided else near and c == first, start, max(0, first - start))
                    regimes.setdefault(c, []).append((row, regime))
        schedule = Schedule.from_step_index(
            step_index=steps,
            update=[[0 < s <= num_steps for s in row] for row in steps],
            sigmas=[1 - t for t in grid[:-1]],
            block_frames=runtime.chunk_width,
        )
        restarts = {
            (row, chunk)
            for chunk, course in regimes.items()
            for (_, before), (row, now) in pairwise(course)
            if now != before
        }
        schedule = replace(
            schedule,
            restarts=frozenset(restarts),
            offered_once=True,
            branches=tuple(zip(*letters, strict=True)),
            stock=tuple(stock),
        )
        times = tuple(tuple(grid[s - 1] if 0 < s <= num_steps else 0.0 for s in row) for row in steps)
        return cls(schedule, times, tuple(guidance) if guided else None)


def time_grid(num_steps: int, shortcut_mode: str) -> list[float]:
    """The ``num_steps + 1`` values of t from 0 (noise) to 1 (clean), as the official loop has them (float32)."""
    if num_steps == 12:
        # Three of every four of the 16-step grid's steps.
        quarters = (0.0, 0.25, 0.5) if shortcut_mode == "16,16,8" else (0.0, 0.5, 0.75)
        starts = torch.tensor([k / 4 + q / 4 for k in range(5) for q in quarters])[:13]
    else:
        starts = torch.linspace(0, 1, num_steps + 1)
    squared = starts**2
    third = 1.0 / 3.0
    return (third * squared / (1 + (third - 1) * squared)).tolist()


def _context_start(runtime: Any, chunk: int, step: int, num_steps: int) -> int:
    """The first chunk that ``chunk`` attends to at a step."""
    ranges = runtime.noise2clean_kvrange
    return max(0, chunk + 1 - ranges[step // (num_steps // len(ranges))]) if ranges else 0


def _letters(
    chunks: int,
    weighs: dict[int, bool],
    *,
    needed: list[int] | tuple[int, ...] = (),
    along: list[int] | tuple[int, ...] = (),
    alone: bool = False,
) -> str:
    """A row of `Schedule.branches`: active chunks by whether the branch weighs, and what it computes besides."""
    otherwise = _ABSENT if alone else ALONG
    letters = dict.fromkeys(along, ALONG) | dict.fromkeys(needed, NEEDED)
    letters |= {c: NEEDED if weight else otherwise for c, weight in weighs.items()}
    return "".join(letters.get(c, _ABSENT) for c in range(chunks))


class _Call:
    """One call of the loop as the engine sees it; chunks are counted from the start of the video.

    Args:
        model: The model.
        stock: The model's own ``forward_dispatcher``.
        plan: The generation's.
        row: Of the plan.
        tensors: ``x`` [2, C, n chunk_width, H, W], ``timestep`` [2, n], ``y`` [2n, 1, L, channels], ``mask`` [2n, 1, L]
            and ``kv_range`` [n, 2], with both guidance halves.
        inference_params: Where the model keeps its context.
        options: The call's other arguments.
    """

    def __init__(
        self,
        model: Any,
        stock: Callable[..., torch.Tensor],
        plan: Plan,
        row: int,
        tensors: dict[str, torch.Tensor],
        inference_params: Any,
        options: dict[str, Any],
    ) -> None:
        self.model = model
        self.stock = stock
        self.plan = plan
        self.row = row
        self.tensors = tensors
        self.inference_params = inference_params
        self.options = options
        self.first: int = options["slice_point"]
        self.chunks: int = options["denoising_range_num"]
        self.width: int = options["chunk_width"]

    def forward(self, request: Pass) -> dict[int, torch.Tensor]:
        """Computes a leading part of the window; see `scope_runtime.engine.Model`."""
        blocks = [b for b in request.blocks if b >= self.first]  # whole prefix chunks had a call of their own
        if blocks != list(range(self.first, self.first + len(blocks))):
            raise ScopeError(f"chunks {blocks} are no leading part of a window that begins with chunk {self.first}")
        active = self.plan.schedule.active(self.row)
        if not set(active) & set(blocks):
            self.write_context(len(blocks))
            return {}
        if self.plan.guidance is None:
            return self._unguided(blocks)
        return self._guided(blocks, self.plan.guidance[self.row])

    def write_context(self, count: int) -> None:
        """Runs the first ``count`` chunks for nothing but the keys and values that later calls read."""
        # With three branches, it is the second (without text) that writes them.
        half = 0 if self.plan.guidance is None else 1
        self._branch(count, half, writes=True, distill_nearly_clean_chunk=False)

    def state(self, block: int) -> torch.Tensor:
        """The chunk's latents."""
        return self.chunk(block)

    def modulated_input(self, blocks: tuple[int, ...]) -> dict[int, torch.Tensor]:
        """First transformer block's normalised input times its gate, ``[tokens, hidden]`` per chunk.

        MAGI-1 does not modulate a block's input by the noise level but gates what the block adds; the product carries
        both content and noise level all the same.
        """
        model, config = self.model, self.model.model_config
        layer = model.videodit_blocks.layers[0]
        x = torch.cat([self.chunk(b) for b in blocks]).float() * config.x_rescale_factor
        if config.half_channel_vae:
            x = torch.cat([x, x], dim=1)
        times = self.tensors["timestep"][0, [b - self.first for b in blocks]].float()
        no_text = torch.tensor([self.plan.guidance is not None], device=x.device)
        with torch.no_grad(), torch.autocast("cuda", torch.float32, enabled=x.is_cuda):
            hidden = model.x_embedder(x).flatten(2).transpose(1, 2)  # [chunks, tokens, hidden]
            condition = model.t_embedder(times)
            if model.engine_config.distill:
                steps = self.options["num_steps"]
                jump = 4 / self.options["distill_interval"] if steps == 12 else steps / 4
                condition = condition + model.t_embedder(torch.ones_like(times) * 2 * jump)
            caption = model.y_embedder.caption_drop_single_token(no_text)
            condition = condition + model.y_embedder.y_proj_adaln(caption).squeeze(1)
        with torch.no_grad():
            normed = layer.self_attention.linear_qkv.layer_norm(hidden.to(config.params_dtype))
            gate = layer.ada_modulate_layer(condition.to(config.params_dtype)).float().tanh().chunk(2, dim=-1)[0]
            modulated = normed.float() * gate.unsqueeze(1)
        return dict(zip(blocks, modulated, strict=True))

    def _guided(self, blocks: list[int], guidance: dict[int, Guidance]) -> dict[int, torch.Tensor]:
        """Velocities of the active chunks among ``blocks`` from the branches that carry weight."""
        schedule = self.plan.schedule
        text_count = len(schedule.computed(TEXT, self.row, blocks))
        text = self._split(self._branch(text_count, 0, writes=False)) if text_count else {}
        context = self._split(self._branch(len(schedule.computed(CONTEXT, self.row, blocks)), 1, writes=True))
        unconditional = self._unconditional(schedule.computed(UNCONDITIONAL, self.row, blocks))
        velocities = {}
        for chunk in (b for b in blocks if b in guidance):
            weights = guidance[chunk]
            terms = [
                weight * outputs[chunk]
                for weight, outputs in (
                    (weights.unconditional, unconditional),
                    (weights.context, context),
                    (weights.text, text),
                )
                if weight != 0
            ]
            velocities[chunk] = torch.stack(terms).sum(dim=0)
        return velocities

    def _branch(self, count: int, half: int, *, writes: bool, **changes: Any) -> torch.Tensor:
        """Runs the first ``count`` chunks with text (half 0) or without (half 1): [1, C, count chunk_width, H, W]."""
        tensors = self.tensors
        rows = slice(half * self.chunks, half * self.chunks + count)
        self.inference_params.update_kv_cache = writes
        return self.model.forward(
            tensors["x"][:1, :, : count * self.width],
            tensors["timestep"][:1, :count],
            tensors["y"][rows],
            caption_dropout_mask=torch.tensor([half == 1], device=tensors["x"].device),
            xattn_mask=tensors["mask"][rows],
            kv_range=tensors["kv_range"][:count],
            inference_params=self.inference_params,
            **self._window(count) | changes,
        )

    def _unconditional(self, blocks: tuple[int, ...]) -> dict[int, torch.Tensor]:
        """The given chunks without text and without context, as a batch."""
        if not blocks:
            return {}
        tensors = self.tensors
        slots = [b - self.first for b in blocks]
        rows = [self.chunks + slot for slot in slots]
        x = torch.cat([self.chunk(b) for b in blocks])
        alone = {"slice_point": 0, "range_num": 1, "denoising_range_num": 1, "fwd_extra_1st_chunk": False}
        output = self.model.forward(
            x,
            tensors["timestep"][0, slots].unsqueeze(1),
            tensors["y"][rows],
            caption_dropout_mask=torch.tensor([True], device=x.device),
            xattn_mask=tensors["mask"][rows],
            kv_range=self.model.generate_kv_range_for_uncondition(x),
            inference_params=None,
            **self.options | alone,
        )
        return dict(zip(blocks, output.split(1), strict=True))

    def _unguided(self, blocks: list[int]) -> dict[int, torch.Tensor]:
        """Velocities of ``blocks`` from the one branch that a distilled model has."""
        count, tensors = len(blocks), self.tensors
        halves = [rows for start in (0, self.chunks) for rows in range(start, start + count)]
        output = self.stock(
            x=tensors["x"][:, :, : count * self.width],
            timestep=tensors["timestep"][:, :count],
            y=tensors["y"][halves],
            mask=tensors["mask"][halves],
            kv_range=tensors["kv_range"][:count],
            inference_params=self.inference_params,
            **self._window(count),
        )
        return self._split(output[:1])

    def _window(self, count: int) -> dict[str, Any]:
        """The call's options for its first ``count`` chunks."""
        return self.options | {"denoising_range_num": count, "range_num": self.first + count}

    def chunk(self, block: int) -> torch.Tensor:
        """Latents of one chunk [1, C, chunk_width, H, W]."""
        start = (block - self.first) * self.width
        return self.tensors["x"][:1, :, start : start + self.width]

    def _split(self, output: torch.Tensor) -> dict[int, torch.Tensor]:
        return {self.first + i: part for i, part in enumerate(output.split(self.width, dim=2))}


class _Opening(_Call):
    """The first call of a generation, which every policy computes in full: its answer, for when the policy is known."""

    def answer(self) -> dict[int, torch.Tensor]:
        """Computes the call, once."""
        self._outputs = super().forward(Pass(self.plan.schedule.active(self.row), Context()))
        return self._outputs

    def forward(self, request: Pass) -> dict[int, torch.Tensor]:
        """What `answer` computed."""
        return self._outputs

    def given_frames(self, second: _Call) -> int:
        """Leading latent frames of the first chunk that the loop puts back after every step: they are given.

        A video that is given in part of a chunk has no call of its own, and noise cannot be told from it. What is given
        is the same in the second call as in the first; everything else has been moved by the first velocity.
        """
        block = self.plan.schedule.active(self.row)[0]
        same = (self.chunk(block) == second.chunk(block)).transpose(0, 2).flatten(1).all(dim=1)
        return 0 if same.all() else int(same.int().cumprod(dim=0).sum())


@dataclass
class _Generation:
    """State of one generation; dropped with its last row, or with the ``inference_params`` that it belongs to.

    Attributes:
        plan: The whole generation.
        chunks_given: Whole chunks of a given video.
        conditions: What the plan rests on and the loop looks up at every call.
        changes: In what the model is no longer the one that was checked.
        opening: The first call, from when it is answered until the second.
        engine: From the second call on: only then the settings are known.
    """

    plan: Plan
    chunks_given: int
    conditions: dict[str, Any]
    changes: list[str]
    opening: _Opening | None = None
    engine: Engine | None = None

    @property
    def row(self) -> int:
        """The row that the next call is."""
        return self.engine.row if self.engine else int(self.opening is not None)


class Magi1Attachment(NotCopied):
    """Holds a model, or a pipeline's model while it runs, accelerated until `detach`.

    Args:
        pipe: A ``VideoDiTModel``, or a ``MagiPipeline``, which builds its model anew for every video.
        policy_for: Chooses the policy of each generation from its real settings.
        check: Refuses a model that is not the calibrated one, before anything is touched.
        observe: Record indicator and output changes.
        recorder: Told of every row when observing.
        pilot: Says what blocks hand over, in place of the policy.
        context: How much of it. Where it is kept is the model's own business.

    Raises:
        AttachError: If the model is already accelerated, or is split over a pipeline of devices.
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
        self.report = Report()
        self._policy_for = policy_for
        self._check_model = check
        self._observe = observe
        self._recorder = recorder
        self._pilot = pilot
        self._context = context or ContextOptions()
        self._model: Any = None
        self._promised: ModelState | None = None
        self._generations: WeakKeyDictionary[Any, _Generation] = WeakKeyDictionary()
        self._refuse_unable(_configs(pipe).engine_config)
        if hasattr(pipe, "forward_dispatcher"):
            self._attach(pipe)
        else:
            if "_run" in vars(pipe):
                raise AttachError("this pipeline is already accelerated by scope_runtime: close the other scope first")
            pipe._run = partial(self._run, pipe._run)

    def _refuse_unable(self, engine: Any) -> None:
        if engine.pp_size > 1:
            raise AttachError(
                f"engine_config.pp_size is {engine.pp_size}: with pipeline parallelism only the last stage sees the "
                "velocity, so nothing can be skipped; set pp_size to 1 and use cp_size instead"
            )
        if self._context.offload:
            raise AttachError(
                "offload_context: MAGI-1 keeps its context itself; set engine_config.kv_offload to true instead"
            )

    def detach(self) -> None:
        """Gives the model or the pipeline back as it was; harmless when called twice."""
        self._release()
        run = vars(self.pipe).get("_run")
        if isinstance(run, partial) and run.func == self._run:
            del self.pipe._run

    @staticmethod
    def identity(pipe: Any) -> ModelIdentity:
        """Identity of a model; a ``MagiPipeline`` has none before it runs."""
        if not hasattr(pipe, "forward_dispatcher"):
            raise AttachError(
                "a MagiPipeline builds its model when it runs: give the model (inference.model.dit.get_dit)"
            )
        return ModelIdentity(
            pipeline="MagiPipeline",
            transformer=type(pipe).__name__,
            config=config_digest(_model_config(pipe)),
            weights=weights_digest(pipe.named_parameters()),
        )

    @staticmethod
    def prepare(pipe: Any, preparation: Preparation) -> AbstractContextManager[None]:
        """Refuses whatever is asked for: the official code chooses kernels and precision by its configuration."""
        if preparation:
            raise AttachError(
                f"settings.preparation: {preparation} cannot be set on MAGI-1, whose own configuration chooses kernels "
                "and precision: set that, and calibrate with it"
            )
        return nullcontext()

    @staticmethod
    def settings(pipe: Any, *, prefix_frames: int = 0) -> Settings:
        """The settings that a model or pipeline would run with.

        Args:
            pipe: The model or pipeline.
            prefix_frames: Latent frames of a given video or image.

        Raises:
            AttachError: If guidance cannot be told.
        """
        configs = _configs(pipe)
        runtime = configs.runtime_config
        frames = runtime.num_frames // runtime.temporal_downsample_factor + prefix_frames
        chunks = -(-frames // runtime.chunk_width)
        return Settings(
            height=_latent_size(runtime.video_size_h) * _PIXELS_PER_LATENT,
            width=_latent_size(runtime.video_size_w) * _PIXELS_PER_LATENT,
            num_frames=chunks * runtime.chunk_width * runtime.temporal_downsample_factor,
            num_inference_steps=runtime.num_steps,
            guidance_scale=float(runtime.cfg_number),
            ar_step=runtime.num_steps // runtime.window_size,
            causal_block_size=runtime.chunk_width,
            dtype=str(configs.model_config.params_dtype).removeprefix("torch."),
            scheduler=_scheduler(pipe),
            prefix=prefix_frames > 0,
        )

    # From the pipeline to its model.

    def _run(self, stock_run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stands in for the pipeline's own method, which looks `get_dit` up in its module."""
        module: Any = sys.modules[type(self.pipe)._run.__module__]
        build = module.get_dit

        def get_dit(config: Any) -> Any:
            model = build(config)
            self._attach(model)
            return model

        module.get_dit = get_dit
        try:
            return stock_run(*args, **kwargs)
        finally:
            module.get_dit = build
            self._release()

    def _attach(self, model: Any) -> None:
        if "forward_dispatcher" in vars(model):
            raise AttachError("this model is already accelerated by scope_runtime: close the other scope first")
        if self._check_model is not None:
            self._check_model(model)
            self._promised = _state(model)
        self._refuse_unable(model.engine_config)
        refuse_other_guidance(model, model.forward_dispatcher, _times(model)[:-1])
        self._model = model
        model.forward_dispatcher = partial(self._answer, model.forward_dispatcher)

    def _release(self) -> None:
        if self._model is not None:
            del self._model.forward_dispatcher
        self._model = None
        self._generations.clear()

    # A generation, in the order of events.

    def _answer(
        self,
        stock: Callable[..., torch.Tensor],
        x: torch.Tensor,
        timestep: torch.Tensor,
        y: torch.Tensor,
        mask: torch.Tensor,
        kv_range: torch.Tensor,
        inference_params: Any,
        **options: Any,
    ) -> torch.Tensor:
        """Stands in for the model's `forward_dispatcher`."""
        tensors = {"x": x, "timestep": timestep, "y": y, "mask": mask, "kv_range": kv_range}
        prefix_call = options.get("extract_prefix_video_feature", False)
        generation = self._generations.get(inference_params)
        if generation is None:
            prefix = options["denoising_range_num"] if prefix_call else 0
            if not prefix_call and (options["slice_point"] > 0 or float(timestep[0, 0]) > 0):
                # Attached in the middle of a generation: what it has done so far is not known.
                return stock(**tensors, inference_params=inference_params, **options)
            generation = self._begin(stock, x, prefix, inference_params, options)
            self._generations[inference_params] = generation
        plan, row = generation.plan, generation.row
        kind = _Call if prefix_call or generation.opening or generation.engine else _Opening
        call = kind(self._model, stock, plan, row, tensors, inference_params, options)
        if prefix_call:
            call.write_context(call.chunks)
            self.report.mark(x.device)
            return x
        self._check_row(generation, call)
        if isinstance(call, _Opening):
            generation.opening = call
            outputs = call.answer()
            if plan.schedule.rows == 1:
                self._open_engine(generation, call, call)
        else:
            if generation.opening is not None:
                generation.engine = self._open_engine(generation, generation.opening, call)
                generation.opening = None
            assert generation.engine is not None
            outputs = generation.engine.run(_GUIDED, call)
        velocity = torch.zeros_like(x)  # of the clean chunk in front nobody reads the velocity
        for chunk, output in outputs.items():
            start = (chunk - call.first) * call.width
            velocity[:, :, start : start + call.width] = output
        self.report.mark(x.device)
        if row + 1 == plan.schedule.rows:
            del self._generations[inference_params]
        return velocity

    def _begin(
        self,
        stock: Callable[..., torch.Tensor],
        x: torch.Tensor,
        prefix: int,
        inference_params: Any,
        options: dict[str, Any],
    ) -> _Generation:
        """The state of a generation whose first call has come."""
        model = self._model
        runtime, config, engine = model.runtime_config, model.model_config, model.engine_config
        self._refuse_unable(engine)
        refuse_other_guidance(model, stock, _times(model)[:-1])
        height, width = x.shape[3] // config.patch_size, x.shape[4] // config.patch_size
        tokens = options["chunk_width"] * height * width
        chunks = inference_params.max_sequence_length // tokens
        if not engine.kv_offload:  # what is kept in host memory takes none of the device's
            need = context_bytes(
                layers=config.num_layers,
                width=-(-config.num_query_groups // engine.cp_size) * config.kv_channels,  # ranks share the heads
                tokens=tokens,
                blocks=chunks,
                branches=1,
                batch=1,
                itemsize=config.params_dtype.itemsize,
            )
            refuse_if_over(need, self._context)
        self.report = Report.begin(x.device)
        plan = Plan.of(runtime, engine, runtime.num_steps, chunks, prefix)
        changes = self._promised.differences(_state(model)) if self._promised else []
        return _Generation(plan, prefix, _looked_up(model), changes)

    def _open_engine(self, generation: _Generation, opening: _Opening, second: _Call) -> Engine:
        """Chooses the policy from the settings that the first two calls show, and makes up for the first row."""
        model, plan = self._model, generation.plan
        width = model.runtime_config.chunk_width
        settings = self.settings(model, prefix_frames=generation.chunks_given * width + opening.given_frames(second))
        x, options = opening.tensors["x"], opening.options
        seen = {
            "height": x.shape[3] * _PIXELS_PER_LATENT,
            "width": x.shape[4] * _PIXELS_PER_LATENT,
            "num_frames": plan.schedule.blocks * width * model.runtime_config.temporal_downsample_factor,
            "num_inference_steps": options["num_steps"],
            "causal_block_size": options["chunk_width"],
        }
        for name, value in seen.items():
            if getattr(settings, name) != value:
                raise _unknown_loop(
                    f"this generation has {name} {value}, but by the model's configuration it should have "
                    f"{getattr(settings, name)}"
                )
        policy, note = self._policy_for(settings, generation.changes)
        if policy is not None:
            policy = policy.of_window(0)
            _check_policy(policy, plan.schedule)
        share = partial(_share, _package(model)) if model.engine_config.cp_size > 1 else None
        engine = Engine(
            plan.schedule, policy, observe=self._observe, recorder=self._recorder, share=share, pilot=self._pilot
        )
        engine.report.note = note
        self.report.windows.append(engine.report)
        engine.run(_GUIDED, opening)
        return engine

    def _check_row(self, generation: _Generation, call: _Call) -> None:
        """Makes sure that the loop does what the plan says: a plan that is not the loop's would spoil the video."""
        clean = int(call.options["fwd_extra_1st_chunk"])
        active = call.plan.schedule.active(call.row)
        times = call.tensors["timestep"][0, clean:].tolist()
        expected = [call.plan.times[call.row][chunk] for chunk in active]
        same = len(times) == len(active) and call.first + clean == active[0]
        if not same or any(abs(a - b) > _TIME_TOLERANCE for a, b in zip(times, expected, strict=True)):
            raise _unknown_loop(
                f"call {call.row} of this generation has chunks from {call.first + clean} at t = {times}, but by its "
                f"configuration it should have chunks from {active[0]} at t = {expected}"
            )
        now = _looked_up(self._model)
        changed = [name for name, value in generation.conditions.items() if now.get(name) != value]
        if changed:
            raise ScopeError(
                f"{changed[0]} was changed to {now.get(changed[0])} in the middle of a generation that began with "
                f"{generation.conditions[changed[0]]}: change settings between generations"
            )


def _configs(pipe: Any) -> Any:
    """What holds ``model_config``, ``runtime_config`` and ``engine_config`` of a model or a pipeline."""
    return pipe if hasattr(pipe, "runtime_config") else pipe.config


def _model_config(model: Any) -> dict[str, Any]:
    """What of its configuration makes a model the one it is."""
    config = {k: v for k, v in vars(model.model_config).items() if k != "params_dtype"}
    return {**config, "distill": model.engine_config.distill, "fp8_quant": model.engine_config.fp8_quant}


def _state(model: Any) -> ModelState:
    tensors = chain(model.named_parameters(), model.named_buffers())
    modules = dict(model.named_modules())
    return ModelState.of(modules, _model_config(model), ((name, tensor, True) for name, tensor in tensors))


def _latent_size(pixels: int) -> int:
    return pixels // _PIXELS_PER_LATENT


def _package(pipe: Any) -> str:
    """The topmost package that a model or pipeline is from."""
    return type(pipe).__module__.partition(".")[0]


def _unknown_loop(found: str) -> ScopeError:
    return ScopeError(f"{found}: this version of MAGI-1's loop is not one that scope_runtime knows, so run without it")


def _looked_up(configs: Any) -> dict[str, Any]:
    """What guidance and context follow from, as the official code looks it up at every call."""
    runtime = configs.runtime_config
    found = {
        "cfg_number": runtime.cfg_number,
        "cfg_t_range": list(runtime.cfg_t_range),
        "prev_chunk_scales": list(runtime.prev_chunk_scales),
        "text_scales": list(runtime.text_scales),
        "noise2clean_kvrange": list(runtime.noise2clean_kvrange),
        "clean_chunk_kvrange": runtime.clean_chunk_kvrange,
        "clean_t": runtime.clean_t,
        "distill_nearly_clean_chunk_threshold": configs.engine_config.distill_nearly_clean_chunk_threshold,
    }
    if runtime.cfg_number == 1:
        found[PREVIOUS_CHUNKS_SCALE] = os.environ.get(PREVIOUS_CHUNKS_SCALE, _USUAL_PREVIOUS_CHUNKS_SCALE)
    return found


def _scheduler(pipe: Any) -> Scheduler:
    """What noise levels, guidance, context and text conditioning follow from, environment variables included."""
    configs = _configs(pipe)
    found = _looked_up(configs) | {"shortcut_mode": configs.engine_config.shortcut_mode}
    del found["cfg_number"]  # a setting of its own
    usual: dict[str, Any] = {}
    if PREVIOUS_CHUNKS_SCALE in found:
        asked = (pipe, _stock_dispatcher(pipe)) if hasattr(pipe, "forward_dispatcher") else ()
        found[PREVIOUS_CHUNKS_SCALE] = previous_chunks_scale(found[PREVIOUS_CHUNKS_SCALE], *asked)
        usual[PREVIOUS_CHUNKS_SCALE] = float(_USUAL_PREVIOUS_CHUNKS_SCALE)
    prompts: Any = sys.modules.get(f"{_package(pipe)}.pipeline.prompt_process")
    if prompts is not None:
        # PAD_HQ, PAD_DURATION and their like, as they are understood by the code itself.
        tokens, negative = prompts.get_special_token_keys(), prompts.get_negative_special_token_keys() or []
        found |= {"special_tokens": tokens, "negative_special_tokens": negative}
        usual |= {"special_tokens": [], "negative_special_tokens": []}
        if tokens or negative:
            found["special_tokens_values"] = weights_digest(prompts.SPECIAL_TOKEN_DICT.items())
    return Scheduler(
        "MAGI-1",
        config={name: value for name, value in found.items() if name not in usual or value != usual[name]},
        defaults={name: value for name, value in usual.items() if found[name] == value},
        sigmas=tuple(1 - t for t in _times(pipe)),
    )


def _times(pipe: Any) -> list[float]:
    """The values of t at every step of a generation, and at its end."""
    configs = _configs(pipe)
    return time_grid(configs.runtime_config.num_steps, configs.engine_config.shortcut_mode)


def _stock_dispatcher(model: Any) -> Callable[..., torch.Tensor]:
    """A model's own ``forward_dispatcher``, also while it is accelerated."""
    found = model.forward_dispatcher
    accelerated = isinstance(found, partial) and getattr(found.func, "__func__", None) is Magi1Attachment._answer
    return found.args[0] if accelerated else found


def _check_policy(policy: Policy, schedule: Schedule) -> None:
    """Refuses what this family cannot do: it computes leading parts of a window on the model's own context."""
    if policy.captures == LAST:
        raise ProfileError(
            "policy.captures", "must be 'clean': MAGI-1 captures a clean chunk itself, along with the next stage"
        )
    if policy.gap_weights is not None:
        for chunk in schedule.active(0):
            if policy.gap_weights.of(chunk, 0, _GUIDED)[0] != 1:
                raise ProfileError(
                    "policy.gap_weights.weights",
                    f"must begin with 1 at step 0 of chunk {chunk}: a generation's first call is answered before its "
                    "policy can be chosen",
                )
    if needs_stale_context(policy, schedule):
        field = (
            "plan" if policy.plan is not None else "granularity" if policy.granularity == "block" else "stale_tolerance"
        )
        raise ProfileError(
            f"policy.{field}",
            "lets a chunk be computed on older keys and values of one before it, which MAGI-1's code does not keep: "
            "use granularity 'prefix' or 'step' without a stale_tolerance",
        )
    for field in ("context_window", "context_dtype"):
        if getattr(policy, field) is not None:
            raise ProfileError(
                f"policy.{field}",
                "must be null: MAGI-1 keeps its context itself; see runtime_config.noise2clean_kvrange",
            )


def _share(module: str, values: torch.Tensor) -> None:
    """Gives every rank of a context-parallel group the first rank's values: ranks that decide apart wait forever."""
    state = import_module(f"{module.partition('.')[0]}.infra.distributed.parallel_state")
    group = state.get_cp_group()
    torch.distributed.broadcast(values, src=torch.distributed.get_process_group_ranks(group)[0], group=group)
