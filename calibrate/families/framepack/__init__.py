"""FramePack (HunyuanVideo): a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.families.diffusers_folder import DiffusersFamily
from calibrate.families.framepack.spec import FramepackSpec
from calibrate.spec.generation import Generation

if TYPE_CHECKING:
    from calibrate.families.footprint import Footprint
    from calibrate.families.target import Target
    from scope_runtime import Settings


class Framepack(DiffusersFamily[FramepackSpec]):
    """Image-to-video, one section of frames after another, or one before another."""

    spec = FramepackSpec
    components = ("transformer", "text_encoder", "text_encoder_2", "image_encoder", "vae")
    recordable = (*DiffusersFamily.recordable, "sampling_type", "distilled_guidance_scale")
    brought = "image=image, prompt=prompt"
    checkpoints = "FramePackI2V_HY or FramePack_F1_I2V_HY with HunyuanVideo's other parts"

    def open(self, folder: Path, spec: FramepackSpec, generation: Generation) -> Target:
        """Loads the pipeline."""
        from calibrate.families.framepack.target import FramepackTarget

        self.refuse_other(folder, spec)
        return FramepackTarget.open(folder, spec, generation)

    def call(self, settings: Settings) -> Mapping[str, Any]:
        """A profile holds for any number of sections, so the number of frames is left to the caller."""
        return {
            **{name: getattr(settings, name) for name in ("height", "width", "num_inference_steps")},
            "true_cfg_scale": settings.guidance_scale,
            "guidance_scale": settings.options["distilled_guidance_scale"],
            "sampling_type": settings.options["sampling_type"],
        }

    def footprint(self, folder: Path, spec: FramepackSpec, generation: Generation) -> Footprint:
        """From the configuration files of transformer and VAE."""
        from calibrate.families.framepack.footprint import footprint_of

        return footprint_of(folder, spec, generation)
