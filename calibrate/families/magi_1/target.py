"""MAGI-1 as a calibration target: a checkout of the official code, its configuration and weights.

The checkout is run as it is; of the configuration, only what a study sets is replaced.
"""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError

from calibrate.errors import CalibrateError
from calibrate.families.content import module_digest
from calibrate.families.magi_1.checkout import PACKAGE, Checkout
from calibrate.families.magi_1.lookahead import EulerLookahead
from calibrate.families.magi_1.spec import Magi1Spec
from calibrate.families.target import AfterRow, Target, Together, Watch, first_line
from calibrate.families.turns import Turns
from calibrate.files import digest, folder_digest
from calibrate.quality.metrics import Frames
from calibrate.replay.trace import TraceSize
from calibrate.spec.generation import Case, Generation
from scope_runtime import AttachError, Policy, Settings, run_policy
from scope_runtime.engine import Pilot

_PIXELS_PER_LATENT = 8
_NOT_LOADED = (OSError, AssertionError, RuntimeError, KeyError, ValueError, SafetensorError)


class Magi1Target(Target):
    """The official model and what its pipeline does around it, text-to-video."""

    def __init__(
        self, package: ModuleType, model: Any, config: Any, generation: Generation, content: dict[str, str]
    ) -> None:
        """Wraps a loaded model.

        Args:
            package: `inference.pipeline.pipeline` of the checkout.
            model: Built by it.
            config: What it was built from.
            generation: What all generations share.
            content: Digests of the checkout's code, its configuration, and all weights, by name.
        """
        self.package = package
        self.config = config
        try:
            settings = Settings.of(model)
            # Tokens before prompts and guidance that the environment asks for: what goes on must go on with them.
            content = {**content, "conditioning": digest(asdict(settings.scheduler))}
            super().__init__(model, generation, content, settings)
        except AttachError as error:
            raise CalibrateError(f"model.path: {first_line(error)}") from error

    @classmethod
    def open(cls, folder: Path, spec: Magi1Spec, generation: Generation) -> Target:
        """Loads the model with the code of a checkout."""
        checkout = Checkout(folder, spec, generation)
        weights = checkout.weights
        package, config = checkout.code()
        runtime = config.runtime_config
        for name, path in checkout.parts.items():
            setattr(runtime, name, str(path))
        runtime.num_steps = generation.num_inference_steps
        runtime.window_size = generation.num_inference_steps // generation.ar_step
        runtime.num_frames = generation.num_frames
        runtime.video_size_h, runtime.video_size_w = generation.height, generation.width
        runtime.fps = generation.fps
        _join_alone()
        try:
            package.dist_init(config)
            if spec.device.startswith("cuda"):
                torch.cuda.set_device(torch.device(spec.device))  # where the code puts everything
            model = package.get_dit(config)
        except torch.cuda.OutOfMemoryError:
            raise  # says what it is
        except _NOT_LOADED as error:
            if not torch.cuda.is_available() and spec.device == "cpu" and isinstance(error, AssertionError):
                raise CalibrateError(
                    "model.device: this checkout's code runs on GPUs only; set it to cuda, on a machine that has one."
                ) from error
            raise CalibrateError(
                f"model.weights: {weights[0].parent} cannot be loaded with {checkout.path.name}: {first_line(error)}; "
                "check that the two belong together."
            ) from error
        content = {
            "transformer": module_digest(model),
            # These two take turns with the transformer in memory, and are loaded when they are needed.
            **{name: folder_digest(path) for name, path in checkout.parts.items() if name != "load"},
            "code": folder_digest(folder / PACKAGE, "*.py"),
            "config": digest(json.loads(checkout.path.read_text(encoding="utf-8"))),
        }
        return cls(package, model, config, generation, content)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next(self.pipe.parameters()).device

    @property
    def network(self) -> torch.nn.Module:
        """The model."""
        return self.pipe

    def trace_size(self) -> TraceSize:
        """What recording a baseline's trace takes; the guidance branches are recorded as one, combined."""
        blocks = self.settings.num_frames // self._frames_per_chunk
        channels = self.pipe.model_config.out_channels
        return TraceSize.of(self.generation, channels, _PIXELS_PER_LATENT, blocks, windows=1, branches=1)

    def _block_ends(self) -> Sequence[int]:
        """Of every chunk; each is decoded by itself."""
        return range(self._frames_per_chunk, self.settings.num_frames + 1, self._frames_per_chunk)

    @property
    def _frames_per_chunk(self) -> int:
        runtime = self.pipe.runtime_config
        return runtime.chunk_width * runtime.temporal_downsample_factor

    def _encode(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings [1, 1, L, channels] and mask [1, L]."""
        return self.package.get_txt_embeddings(prompt, self.config)

    def _chunks(self, case: Case, model: Any = None) -> Any:
        embeddings, masks = self.encode(case.prompt)
        # The loop draws its noise from the device's global generator.
        torch.manual_seed(case.seed)
        return self.package.generate_per_chunk(
            model=model or self.pipe, prefix_video=None, caption_embs=embeddings, emb_masks=masks
        )

    def _generate(self, case: Case, watch: Watch | None = None, after_row: AfterRow | None = None) -> torch.Tensor:
        made: list[torch.Tensor] = []
        last = self.settings.num_frames // self._frames_per_chunk
        rows = None if after_row is None else _Rows(self.pipe, last, after_row)
        for chunk in self._chunks(case, rows):
            made.append(chunk)
            if watch and len(made) < last:
                watch(torch.cat(made, dim=2))
        latents = torch.cat(made, dim=2)
        if rows is not None:
            rows.end(latents)
        return latents

    def denoise_together(self, cases: Sequence[Case], policy: Policy, pilot: Pilot | None = None) -> Together:
        """In turns, one row each: the official loop makes one clip. Every clip has keys and values of its own."""
        turns = Turns(pilot, len(cases)) if pilot else None

        def generated(number: int) -> torch.Tensor:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)  # every thread has its own
            return self._generate(cases[number])

        for case in cases:
            self.encode(case.prompt)
        with run_policy(self.pipe, policy, pilot=turns) as scope:
            latents = turns.run(generated) if turns else [generated(number) for number in range(len(cases))]
        return Together(torch.cat(latents).cpu(), scope.report)

    def lookahead(self) -> AbstractContextManager[EulerLookahead]:
        """See `Target.lookahead`."""
        return nullcontext(EulerLookahead(self.settings.scheduler.sigmas))

    def _generate_little(self, case: Case) -> torch.Tensor:
        runtime = self.pipe.runtime_config
        steps = runtime.num_steps
        runtime.num_steps = math.lcm(runtime.window_size, max(1, len(runtime.noise2clean_kvrange)))
        try:
            return next(self._chunks(case))
        finally:
            runtime.num_steps = steps

    def _decode(self, latents: torch.Tensor) -> Frames:
        chunks = latents.split(self.pipe.runtime_config.chunk_width, dim=2)
        frames = torch.cat([self.package.post_chunk_process(chunk, self.config) for chunk in chunks])
        return (frames.permute(0, 2, 3, 1).float() / 255).cpu().numpy()


class _Rows:
    """The model as the loop sees it, and somebody who is told what every row led to.

    That is what the next call comes with, a chunk that has just been completed included.

    Args:
        model: The model.
        chunks: Of the whole video.
        after_row: See `Target.denoise`.
    """

    def __init__(self, model: Any, chunks: int, after_row: AfterRow) -> None:
        self._model = model
        self._chunks = chunks
        self._after_row = after_row
        self._rows = 0
        self._latents: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward_dispatcher(self, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        """The model's, whatever that is at the moment."""
        width, start = options["chunk_width"], options["slice_point"] * options["chunk_width"]
        if self._latents is None:
            self._latents = x.new_zeros(1, x.shape[1], self._chunks * width, *x.shape[3:])
        self._latents[:, :, start : start + x.shape[2]] = x[:1]
        velocity: torch.Tensor = self._model.forward_dispatcher(x, *args, **options)
        # Only now: whoever records knows of a window after its second call.
        if self._rows:
            self._after_row(self._rows - 1, self._latents)
        self._rows += 1
        return velocity

    def end(self, latents: torch.Tensor) -> None:
        """The loop has ended with these latents."""
        self._after_row(self._rows - 1, latents)


def _join_alone() -> None:
    """Tells torch.distributed where to meet: it asks even a single process."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
