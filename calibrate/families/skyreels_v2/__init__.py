"""SkyReels-V2 diffusion forcing: a diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from calibrate.families.diffusers_folder import DiffusersFamily
from calibrate.families.skyreels_v2.spec import SkyReelsV2Spec
from calibrate.spec.generation import Generation

if TYPE_CHECKING:
    from calibrate.families.footprint import Footprint
    from calibrate.families.target import Target


class SkyReelsV2(DiffusersFamily[SkyReelsV2Spec]):
    """Text-to-video, one window after another."""

    spec = SkyReelsV2Spec
    recordable = (*DiffusersFamily.recordable, "flow_shift")
    checkpoints = "a diffusion-forcing text-to-video checkpoint"

    def open(self, folder: Path, spec: SkyReelsV2Spec, generation: Generation) -> Target:
        """Loads the pipeline."""
        from calibrate.families.skyreels_v2.target import SkyReelsV2Target

        self.refuse_other(folder, spec)
        return SkyReelsV2Target.open(folder, spec, generation)

    def footprint(self, folder: Path, spec: SkyReelsV2Spec, generation: Generation) -> Footprint:
        """From the configuration files of transformer and VAE."""
        from calibrate.families.skyreels_v2.footprint import footprint_of

        return footprint_of(folder, spec, generation)
