"""What a study says of a Helios model."""

from __future__ import annotations

from typing import Literal

from calibrate.families.chunked import ChunkedSpec
from calibrate.spec.generation import Case


class HeliosSpec(ChunkedSpec):
    """A diffusers folder of Helios-Base.

    Attributes:
        starts_from: What videos start from: nothing, or an image that each case names.
    """

    family: Literal["helios"] = "helios"
    pipeline_class: Literal["HeliosPipeline"] = "HeliosPipeline"
    starts_from: Literal["nothing", "image"] = "nothing"

    def refuse_case(self, case: Case) -> None:
        """A case has an image if videos start from one."""
        if case.image is None and self.starts_from == "image":
            raise ValueError("image must name the image that the video starts from, as model.starts_from says")
        if case.image is not None and self.starts_from == "nothing":
            raise ValueError("image is of no use unless model.starts_from is image; set that, or remove it")
