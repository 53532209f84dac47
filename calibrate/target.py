"""The model under calibration: load it, generate with it, time it.

What differs between families is in a subclass each: `calibrate.skyreels_v2`, `calibrate.magi_1`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from calibrate.devices import require_device
from calibrate.quality import Frames, Span
from calibrate.rounding import ReversedSums
from calibrate.store import CONTENT
from calibrate.study_file import Case, Generation, ModelSpec
from calibrate.trace import TraceSize
from scope_runtime import ModelIdentity, Report, Settings

T = TypeVar("T")
# Takes final latents [1, channels, complete latent frames, h, w].
Watch = Callable[[torch.Tensor], None]

_FAMILIES = {
    "skyreels_v2": ("calibrate.skyreels_v2", "SkyReelsV2Target"),
    "magi_1": ("calibrate.magi_1", "Magi1Target"),
}


@dataclass(frozen=True)
class Denoised:
    """What one run of the denoising loop gave.

    Attributes:
        latents: Final latents [1, channels, latent frames, h, w], on the CPU.
        seconds: Wall-clock time of the denoising, without text encoding, decoding and what was done while watching.
    """

    latents: torch.Tensor
    seconds: float


class Target(ABC):
    """A loaded model with the arguments that all generations of a study share."""

    def __init__(self, pipe: Any, generation: Generation, content: dict[str, str], settings: Settings) -> None:
        """Wraps what was loaded.

        Args:
            pipe: What `scope_runtime` attaches to: a pipeline, or a model.
            generation: What all generations share.
            content: Digests of all that a generation is made with, by part: text encoder and VAE included.
            settings: What all generations run with.
        """
        self.pipe = pipe
        self.generation = generation
        self.model = {**ModelIdentity.of(pipe).to_dict(), CONTENT: content}
        self.settings = settings
        self._embeds: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._encode_seconds: dict[str, float] = {}
        self._warm = False

    @classmethod
    def load(cls, folder: Path, spec: ModelSpec, generation: Generation) -> Target:
        """Loads the model that a study names.

        Args:
            folder: `model.path`.
            spec: Family, data type, device and number of CPU threads.
            generation: What all generations share.

        Raises:
            CalibrateError: If the folder holds no such model, or the device is not there.
        """
        require_device(spec.device)
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        module, name = _FAMILIES[spec.family]
        target: type[Target] = getattr(import_module(module), name)
        return target.open(folder, spec, generation)

    @classmethod
    @abstractmethod
    def open(cls, folder: Path, spec: ModelSpec, generation: Generation) -> Target:
        """Loads a model of this family; see `load`."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model runs."""

    @property
    @abstractmethod
    def network(self) -> torch.nn.Module:
        """The transformer."""

    @abstractmethod
    def trace_size(self) -> TraceSize:
        """What recording a baseline's trace takes."""

    @abstractmethod
    def _block_ends(self) -> Sequence[int]:
        """The frame after each block's last, block by block, in the whole decoded clip."""

    def block_spans(self, frames: int) -> list[Span]:
        """The frames [start, end) that the latent frames of each block are decoded to.

        Args:
            frames: Of the clip, or of a beginning of it.
        """
        ends = [end for end in self._block_ends() if end < frames]
        return list(pairwise([0, *ends, frames]))

    @abstractmethod
    def _encode(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Text embeddings of a prompt, and what goes with them."""

    @abstractmethod
    def _generate(self, case: Case, watch: Watch | None = None) -> torch.Tensor:
        """Final latents of a case; see `denoise` for `watch`."""

    @abstractmethod
    def _decode(self, latents: torch.Tensor) -> Frames:
        """Frames of final latents."""

    @abstractmethod
    def _generate_little(self, case: Case) -> torch.Tensor:
        """Latents from as few steps as will do to warm up."""

    def warm_up(self, case: Case) -> None:
        """Runs a few steps and a decode whose times nobody records, once in a process.

        The first call is slower than later ones (kernel choice, allocation).
        """
        if not self._warm:
            self.decode(self._generate_little(case))
            self._warm = True

    def encode(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Text embeddings of the prompt and what goes with them (SkyReels-V2: those of the negative prompt), once."""
        if prompt not in self._embeds:
            with torch.no_grad():
                self._embeds[prompt], self._encode_seconds[prompt] = self._timed(lambda: self._encode(prompt))
        return self._embeds[prompt]

    def encode_seconds(self, prompt: str) -> float:
        """Wall-clock time that encoding the prompt took."""
        self.encode(prompt)
        return self._encode_seconds[prompt]

    def denoise(self, case: Case, watch: Watch | None = None) -> Denoised:
        """Generates latents for a case, whatever is attached at the moment.

        Args:
            case: Prompt and seed.
            watch: Called with the final latents of the first blocks as soon as another block is complete, unless it is
                the last; what it raises ends the generation. Not called for a video of several windows.
        """
        self.encode(case.prompt)
        watched = 0.0

        def timed_watch(latents: torch.Tensor) -> None:
            nonlocal watched
            assert watch is not None
            _, seconds = self._timed(lambda: watch(latents))
            watched += seconds
            if self.device.type == "cuda":
                # What decoding took is no part of the generation's peak; see `scope_runtime.Report`.
                torch.cuda.reset_peak_memory_stats(self.device)

        latents, seconds = self._timed(lambda: self._generate(case, timed_watch if watch else None))
        return Denoised(latents.cpu(), seconds - watched)

    def denoise_otherwise(self, case: Case) -> torch.Tensor | None:
        """Final latents of a case by the same arithmetic with other rounding; see `calibrate.rounding.ReversedSums`.

        Returns:
            Latents [1, channels, latent frames, h, w], on the CPU; None if none of the model's layers can be made to
            round in another way.
        """
        with ReversedSums() as other:
            latents = self.denoise(case).latents
        return latents if other.reversed else None

    def decode(self, latents: torch.Tensor) -> tuple[Frames, float]:
        """Decodes latents just as the pipeline itself does at the end of its call.

        Args:
            latents: Final latents [1, channels, latent frames, h, w].

        Returns:
            Frames [T, H, W, 3] in [0, 1], and the seconds that it took.
        """
        with torch.no_grad():
            frames, seconds = self._timed(lambda: self._decode(latents.to(self.device)))
        return np.ascontiguousarray(frames), seconds

    def memory_bytes(self, report: Report) -> int:
        """Memory that a generation took: the device's peak where it counts, else weights, context and histories."""
        if report.peak_memory_bytes is not None:
            return report.peak_memory_bytes
        weights = sum(p.numel() * p.element_size() for p in self.network.parameters())
        return weights + report.context_bytes + report.history_bytes

    def _timed(self, work: Callable[[], T]) -> tuple[T, float]:
        self._synchronize()
        start = time.perf_counter()
        result = work()
        self._synchronize()
        return result, time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def first_line(error: Exception) -> str:
    """The first line of what an exception says."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
