"""The model under calibration: generate with it, time it.

What differs between families is in a subclass each, in the family's own package.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch

from calibrate.errors import CalibrateError
from calibrate.families.lookahead import Lookahead
from calibrate.families.rounding import ReversedSums
from calibrate.quality.metrics import Frames, Span
from calibrate.replay.trace import TraceSize
from calibrate.spec.generation import Case, Generation
from calibrate.store import CONTENT
from scope_runtime import ModelIdentity, Policy, Preparation, Report, Settings, exact
from scope_runtime.engine import Pilot
from scope_runtime.preparation import prepare as prepared

T = TypeVar("T")
# Takes a row's number and the latents [batch, channels, latent frames, h, w] that it led to, those of its window.
AfterRow = Callable[[int, torch.Tensor], None]
# Takes final latents [1, channels, complete latent frames, h, w].
Watch = Callable[[torch.Tensor], None]


@dataclass(frozen=True)
class Denoised:
    """What one run of the denoising loop gave.

    Attributes:
        latents: Final latents [1, channels, latent frames, h, w], on the CPU.
        seconds: Wall-clock time of the denoising, without text encoding, decoding and what was done while watching.
    """

    latents: torch.Tensor
    seconds: float


@dataclass(frozen=True)
class Together:
    """What several generations in lockstep gave.

    Attributes:
        latents: Final latents [cases, channels, latent frames, h, w], on the CPU.
        report: What each of them did, the evaluations of one.
    """

    latents: torch.Tensor
    report: Report


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
        self._embeds: dict[str, tuple[Any, ...]] = {}
        self._encode_seconds: dict[str, float] = {}
        self._warm = False

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
    def _encode(self, prompt: str) -> tuple[Any, ...]:
        """Text embeddings of a prompt, and what goes with them."""

    @abstractmethod
    def _generate(self, case: Case, watch: Watch | None = None, after_row: AfterRow | None = None) -> torch.Tensor:
        """Final latents of a case; see `denoise`."""

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

    def set_up(self, preparation: Preparation) -> AbstractContextManager[None]:
        """Sets the pipeline up while the context lasts; see `scope_runtime.prepare`."""
        return prepared(self.pipe, preparation)

    def rehearse(self, case: Case, preparation: Preparation) -> None:
        """Runs what is slow once in a pipeline that was set up just now, without taking its time.

        Compiled blocks are compiled for what they meet, so that takes a whole generation.
        """
        if preparation.compiled:
            with exact(self.pipe):
                self.denoise(case)
        elif preparation:
            with exact(self.pipe):
                self._generate_little(case)

    def encode(self, prompt: str) -> tuple[Any, ...]:
        """Text embeddings of the prompt and what goes with them (such as those of the negative prompt), once."""
        if prompt not in self._embeds:
            with torch.no_grad():
                self._embeds[prompt], self._encode_seconds[prompt] = self._timed(lambda: self._encode(prompt))
        return self._embeds[prompt]

    def encode_seconds(self, prompt: str) -> float:
        """Wall-clock time that encoding the prompt took."""
        self.encode(prompt)
        return self._encode_seconds[prompt]

    def denoise(self, case: Case, watch: Watch | None = None, after_row: AfterRow | None = None) -> Denoised:
        """Generates latents for a case, whatever is attached at the moment.

        Args:
            case: Prompt and seed.
            watch: Called with the final latents of the first blocks as soon as another block is complete, unless it is
                the last; what it raises ends the generation. Called where the family allows that.
            after_row: Called after every row, where the family allows that.
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

        latents, seconds = self._timed(lambda: self._generate(case, timed_watch if watch else None, after_row))
        return Denoised(latents.cpu(), seconds - watched)

    def denoise_together(self, cases: Sequence[Case], policy: Policy, pilot: Pilot | None = None) -> Together:
        """Generates several cases in lockstep, row by row.

        Args:
            cases: Prompts and seeds.
            policy: With a frozen plan, which all of them follow; nothing may be attached.
            pilot: Says what blocks hand over, in the policy's place, for all cases at once: what it sees and gives
                holds them along the first dimension, in order.

        Raises:
            CalibrateError: If the family cannot do that.
        """
        raise _cannot_be_fitted()

    def lookahead(self) -> AbstractContextManager[Lookahead]:
        """Where the scheduler leads, for generations within a `with` block.

        Raises:
            CalibrateError: If the family cannot tell.
        """
        raise _cannot_be_fitted()

    def denoise_otherwise(self, case: Case) -> torch.Tensor | None:
        """Final latents of a case by the same arithmetic with other rounding; see `families.rounding.ReversedSums`.

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


def _cannot_be_fitted() -> CalibrateError:
    return CalibrateError("search.learned: weights cannot be fitted for this family yet; leave it out.")


def first_line(error: Exception) -> str:
    """The first line of what an exception says."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
