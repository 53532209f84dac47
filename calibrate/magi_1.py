"""MAGI-1 as a calibration target: a checkout of the official code, its configuration and weights.

The checkout is run as it is; of the configuration, only what a study sets is replaced.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from calibrate.content import module_digest
from calibrate.errors import CalibrateError
from calibrate.files import digest, folder_digest
from calibrate.quality import Frames
from calibrate.study_file import Case, Generation, ModelSpec
from calibrate.target import Target, Watch, first_line
from calibrate.trace import TraceSize
from scope_runtime import AttachError, Settings

_PIXELS_PER_LATENT = 8
_FILES = ("load", "t5_pretrained", "vae_pretrained")


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
            super().__init__(model, generation, content, Settings.of(model))
        except AttachError as error:
            raise CalibrateError(f"model.path: {first_line(error)}") from error

    @classmethod
    def open(cls, folder: Path, spec: ModelSpec, generation: Generation) -> Target:
        """Loads the model with the code of a checkout."""
        package = _import(folder)
        path = folder / str(spec.config)
        config = _read(package, path)
        _apply(config, path, spec, generation)
        runtime = config.runtime_config
        root = folder / (spec.weights or ".")
        for name in _FILES:
            if getattr(runtime, name) is not None:
                setattr(runtime, name, str(root / getattr(runtime, name)))
        weights = {name: getattr(runtime, name) for name in _FILES if getattr(runtime, name) is not None}
        for name, found in weights.items():
            if not Path(found).exists():
                raise CalibrateError(
                    f"model.weights: {found} is missing, which the configuration names as {name}; download it, or name "
                    "the folder that holds it."
                )
        try:
            package.dist_init(config)
            model = package.get_dit(config)
        except (OSError, AssertionError, RuntimeError, KeyError) as error:
            raise CalibrateError(f"model.path: {folder} cannot be loaded: {first_line(error)}") from error
        content = {
            "transformer": module_digest(model),
            # These two take turns with the transformer in memory, and are loaded when they are needed.
            **{name: folder_digest(Path(found)) for name, found in weights.items() if name != "load"},
            "code": folder_digest(folder / "inference", "*.py"),
            "config": digest(json.loads(path.read_text(encoding="utf-8"))),
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


def _import(checkout: Path) -> ModuleType:
    """`inference.pipeline.pipeline` of a checkout; one process can only have one."""
    if not (checkout / "inference" / "pipeline").is_dir():
        raise CalibrateError(
            f"model.path: {checkout} is no checkout of MAGI-1 (it has no inference/pipeline); clone "
            "github.com/SandAI-org/MAGI-1 and name its folder."
        )
    checkout = checkout.resolve()
    # The code reads these when it is imported, relative to the folder that it is started in.
    os.environ.setdefault("SPECIAL_TOKEN_PATH", str(checkout / "example" / "assets" / "special_tokens.npz"))
    # Its progress bars would run into ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.path.insert(0, str(checkout))
    try:
        package = import_module("inference.pipeline.pipeline")
    except ImportError as error:
        raise CalibrateError(
            f"model.path: MAGI-1's code needs {error.name}, which is not installed; see its requirements.txt."
        ) from error
    finally:
        sys.path.remove(str(checkout))
    logging.getLogger("magi_logger").setLevel(logging.WARNING)
    used = Path(str(package.__file__)).resolve()
    if not used.is_relative_to(checkout):
        raise CalibrateError(
            f"model.path: another package called inference is in the way ({used}); run from another folder."
        )
    return package


def _read(package: ModuleType, path: Path) -> Any:
    try:
        return package.MagiConfig.from_json(str(path))
    except (OSError, ValueError, KeyError, TypeError, AssertionError, json.JSONDecodeError) as error:
        raise CalibrateError(f"model.config: {path} cannot be read: {first_line(error)}") from error


def _apply(config: Any, path: Path, spec: ModelSpec, generation: Generation) -> None:
    """Puts the study's settings into a configuration, and refuses those that the weights do not allow."""
    runtime, engine = config.runtime_config, config.engine_config
    for field, ours, theirs in (
        ("generation.guidance_scale", generation.guidance_scale, runtime.cfg_number),
        ("generation.causal_block_size", generation.causal_block_size, runtime.chunk_width),
        ("model.torch_dtype", spec.torch_dtype, str(config.model_config.params_dtype).removeprefix("torch.")),
    ):
        if ours != theirs:
            raise CalibrateError(f"{field}: is {ours}, but {path.name} says {theirs}; change one of the two.")
    if engine.cp_size > 1 or engine.pp_size > 1:
        raise CalibrateError(
            f"model.config: {path.name} asks for {engine.cp_size * engine.pp_size} processes per video; set "
            "engine_config.cp_size and pp_size to 1 and start one worker per GPU instead."
        )
    runtime.num_steps = generation.num_inference_steps
    runtime.window_size = generation.num_inference_steps // generation.ar_step
    runtime.num_frames = generation.num_frames
    runtime.video_size_h, runtime.video_size_w = generation.height, generation.width
    runtime.fps = generation.fps
    stages = max(1, len(runtime.noise2clean_kvrange))
    if runtime.num_steps % stages:
        raise CalibrateError(
            f"generation.num_inference_steps: must be a multiple of {stages}, the number of context ranges in "
            f"{path.name}, not {runtime.num_steps}."
        )
    # What torch.distributed asks for, even of a single process.
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
