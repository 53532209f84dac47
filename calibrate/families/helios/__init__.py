"""Helios (Base): a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.families.diffusers_folder import DiffusersFamily
from calibrate.families.helios.spec import HeliosSpec
from calibrate.spec.generation import Generation

if TYPE_CHECKING:
    from calibrate.families.footprint import Footprint
    from calibrate.families.target import Target
    from scope_runtime import Settings


class Helios(DiffusersFamily[HeliosSpec]):
    """Text- and image-to-video, one chunk of frames after another."""

    spec = HeliosSpec
    checkpoints = "Helios-Base"

    def open(self, folder: Path, spec: HeliosSpec, generation: Generation) -> Target:
        """Loads the pipeline."""
        from calibrate.families.helios.target import HeliosTarget

        self.refuse_other(folder, spec)
        return HeliosTarget.open(folder, spec, generation)

    def call(self, settings: Settings) -> Mapping[str, Any]:
        """A profile holds for any number of chunks, so the number of frames is left to the caller."""
        return {name: getattr(settings, name) for name in ("height", "width", "num_inference_steps", "guidance_scale")}

    def footprint(self, folder: Path, spec: HeliosSpec, generation: Generation) -> Footprint:
        """From the configuration files of transformer and VAE."""
        from calibrate.families.helios.footprint import footprint_of

        return footprint_of(folder, spec, generation)
