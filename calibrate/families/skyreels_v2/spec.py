"""What a study says of a SkyReels-V2 model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from calibrate.families.diffusers_folder import DiffusersSpec
from calibrate.spec.generation import Generation
from calibrate.spec.search_space import SearchSpace


class SkyReelsV2Spec(DiffusersSpec):
    """A diffusers folder of SkyReels-V2 diffusion forcing.

    Attributes:
        flow_shift: Replaces that of the checkpoint's scheduler.
    """

    family: Literal["skyreels_v2"] = "skyreels_v2"
    pipeline_class: Literal["SkyReelsV2DiffusionForcingPipeline"] = "SkyReelsV2DiffusionForcingPipeline"
    flow_shift: float | None = Field(default=None, gt=0)

    def refuse_unfit(self, generation: Generation, search: SearchSpace) -> None:
        """Refuses what would be found out only after the baselines."""
        generation.refuse_missing("ar_step", "causal_block_size")
        if search.learned is not None and generation.num_frames > generation.base_num_frames:
            raise ValueError(
                "search.learned must be null for videos of several windows; weights are fitted where "
                f"generation.num_frames is at most base_num_frames ({generation.base_num_frames})"
            )
