"""What a model family brings: all that a study, its checks and a calibration ask of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from calibrate.families.check import Check
from calibrate.spec.generation import Generation, ModelSpec

if TYPE_CHECKING:
    from calibrate.families.footprint import Footprint
    from calibrate.families.target import Target
    from scope_runtime import Settings

Spec = TypeVar("Spec", bound=ModelSpec)
Checks = Mapping[str, Callable[[], Check]]
"""Checks by name, in the order in which they are made; one that raises `CalibrateError` has failed."""


class Family(ABC, Generic[Spec]):
    """One model family.

    Reading a study asks for `spec` alone, so what takes long to import (torch, diffusers, the family's own code) is
    imported by the methods that need it. They take the same arguments: `folder` is where `model.path` leads, `spec`
    and `generation` are the study's.

    Attributes:
        spec: The study's fields under `model`; the default of its `family` is the family's name.
        self_contained: Whether a folder holds all that a model takes, so that no study need say more.
        recordable: Those of its fields that say how a model is run, not which: a profile may set them.
        brought: The arguments that a case brings to a call, as code.
    """

    spec: type[Spec]
    self_contained: bool = False
    recordable: tuple[str, ...] = ("torch_dtype", "device", "threads")
    brought: str = "prompt"

    @property
    def name(self) -> str:
        """What a study calls it."""
        return str(self.spec.model_fields["family"].default)

    @property
    @abstractmethod
    def holder(self) -> str:
        """What `model.path` names, such as "a checkout of MAGI-1"."""

    def call(self, settings: Settings) -> Mapping[str, Any]:
        """Arguments of a pipeline call, beside the prompt and what else a case brings, that settings stand for."""
        names = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale", "ar_step")
        return {name: getattr(settings, name) for name in (*names, "causal_block_size")}

    def usage(self, settings: Settings, name: str) -> str:
        """The code that uses a profile.

        Args:
            settings: What it was calibrated for.
            name: Its file's.
        """
        call = ",\n    ".join(f"{field}={value!r}" for field, value in self.call(settings).items())
        prepare = ", prepare=True" if settings.preparation else ""
        return (
            "from scope_runtime import Profile, apply_scope\n\n"
            f"settings = dict(\n    {call},\n)\n"
            f'profile = Profile.load("{name}")\n'
            f"with apply_scope(pipe, profile{prepare}) as scope:\n"
            f"    video = pipe({self.brought}, **settings).frames\n"
            "print(scope.report)"
        )

    def recognises(self, folder: Path) -> bool:
        """Whether a folder is that of a self-contained model of this family, by what it says of itself."""
        return False

    @abstractmethod
    def open(self, folder: Path, spec: Spec, generation: Generation) -> Target:
        """Loads the model.

        Raises:
            CalibrateError: If the folder holds no such model, or it cannot be run as the study says.
        """

    @abstractmethod
    def footprint(self, folder: Path, spec: Spec, generation: Generation) -> Footprint:
        """What generations take, without loading the model.

        Raises:
            CalibrateError: If a configuration file is missing or damaged, or the study does not fit it.
        """

    @abstractmethod
    def weights(self, folder: Path, spec: Spec, generation: Generation) -> list[list[Path]]:
        """The safetensors files of each model that a generation keeps on its device, the transformer's first.

        Raises:
            CalibrateError: If one is missing.
        """

    def first_checks(self, folder: Path, spec: Spec, generation: Generation) -> Checks:
        """Checks of the family's own; the first that fails ends them, and weights and `further_checks` are left out."""
        return {}

    def further_checks(self, folder: Path, spec: Spec, generation: Generation) -> Checks:
        """Checks of the family's own that are made after the weights'."""
        return {}

    def cut_prompt(self, folder: Path, spec: Spec, generation: Generation, prompts: Sequence[str]) -> str | None:
        """A sentence about the first prompt of which the model would not see all; None if there is none.

        Raises:
            CalibrateError: If that cannot be found out.
        """
        return None
