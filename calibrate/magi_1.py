"""MAGI-1 as a calibration target: a checkout of the official code, its configuration and weights.

The checkout is run as it is; of the configuration, only what a study sets is replaced.
"""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError

from calibrate.content import module_digest
from calibrate.errors import CalibrateError
from calibrate.files import digest, folder_digest
from calibrate.magi_1_checkout import PACKAGE, Checkout
from calibrate.quality import Frames
from calibrate.study_file import Case, Generation, ModelSpec
from calibrate.target import Target, Watch, first_line
from calibrate.trace import TraceSize
from scope_runtime import AttachError, Settings

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
    def open(cls, folder: Path, spec: ModelSpec, generation: Generation) -> Target:
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
        return TraceSize.bound(self.generation, channels, _PIXELS_PER_LATENT, blocks, windows=1, branches=1)

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

    def _chunks(self, case: Case) -> Any:
        embeddings, masks = self.encode(case.prompt)
        # The loop draws its noise from the device's global generator.
        torch.manual_seed(case.seed)
        return self.package.generate_per_chunk(
            model=self.pipe, prefix_video=None, caption_embs=embeddings, emb_masks=masks
        )

    def _generate(self, case: Case, watch: Watch | None = None) -> torch.Tensor:
        made: list[torch.Tensor] = []
        last = self.settings.num_frames // self._frames_per_chunk
        for chunk in self._chunks(case):
            made.append(chunk)
            if watch and len(made) < last:
                watch(torch.cat(made, dim=2))
        return torch.cat(made, dim=2)

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


def _join_alone() -> None:
    """Tells torch.distributed where to meet: it asks even a single process."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
