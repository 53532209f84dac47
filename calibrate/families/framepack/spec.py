"""What a study says of a FramePack model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from calibrate.families.chunked import ChunkedSpec
from calibrate.spec.generation import Case


class FramepackSpec(ChunkedSpec):
    """A diffusers folder of FramePack; every case names the image that its video starts from.

    Of the study's `generation`, `guidance_scale` is the true one, with a second call per step for the negative prompt
    (`true_cfg_scale`); at 1, as is usual, there is none.

    Attributes:
        sampling_type: How the checkpoint makes its sections: last to first (FramePackI2V_HY), or forwards (`vanilla`,
            FramePack_F1).
        distilled_guidance_scale: The guidance that the transformer is told.
    """

    family: Literal["framepack"] = "framepack"
    pipeline_class: Literal["HunyuanVideoFramepackPipeline"] = "HunyuanVideoFramepackPipeline"
    sampling_type: Literal["inverted_anti_drifting", "vanilla"] = "inverted_anti_drifting"
    distilled_guidance_scale: float = Field(default=6.0, ge=0)

    def refuse_case(self, case: Case) -> None:
        """Every case has an image."""
        if case.image is None:
            raise ValueError("image must name the image that the video starts from; FramePack makes none without")
