"""What calibration targets have in common that are diffusers pipelines."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import diffusers
import torch
import transformers

from calibrate.errors import CalibrateError
from calibrate.families.content import parts_of
from calibrate.families.target import Target, first_line
from calibrate.spec.generation import Generation
from scope_runtime import Settings


class DiffusersTarget(Target):
    """A diffusers pipeline.

    Attributes:
        pipeline: Its class.
        call: Arguments of every call, but for prompts and seeds.
    """

    pipeline: ClassVar[Any]

    def __init__(
        self, pipe: Any, generation: Generation, content: dict[str, str], settings: Settings, call: dict[str, Any]
    ) -> None:
        """Wraps what was loaded; see `Target`."""
        super().__init__(pipe, generation, content, settings)
        self.call = call

    @classmethod
    def open(cls, folder: Path, spec: Any, generation: Generation) -> Self:
        """Loads the pipeline from a diffusers folder, which names this pipeline."""
        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()
        try:
            pipe = cls.pipeline.from_pretrained(
                folder,
                dtype=getattr(torch, spec.torch_dtype),
                variant=spec.variant,
                local_files_only=True,
                use_safetensors=True,
            )
        except (OSError, ValueError, KeyError) as error:
            raise CalibrateError(f"model.path: {folder} cannot be loaded: {first_line(error)}") from error
        cls.prepare(pipe, spec, generation)
        pipe.set_progress_bar_config(disable=True)
        pipe.to(spec.device)
        call = cls.call_arguments(spec, generation)
        return cls(pipe, generation, parts_of(pipe.components), Settings.of(pipe, **call, **cls.told(spec)), call)

    @classmethod
    def prepare(cls, pipe: Any, spec: Any, generation: Generation) -> None:
        """Changes a loaded pipeline as the study says; raises `CalibrateError` if the settings do not fit it."""

    @classmethod
    @abstractmethod
    def call_arguments(cls, spec: Any, generation: Generation) -> dict[str, Any]:
        """The pipeline call's arguments but for prompts, seeds and images."""

    @classmethod
    def told(cls, spec: Any) -> dict[str, Any]:
        """What else settings have to be told of a call: arguments that each case brings, whatever they are."""
        return {}

    @property
    def device(self) -> torch.device:
        """Where the pipeline runs."""
        device: torch.device = self.pipe._execution_device
        return device

    @property
    def network(self) -> torch.nn.Module:
        """The pipeline's transformer."""
        network: torch.nn.Module = self.pipe.transformer
        return network
