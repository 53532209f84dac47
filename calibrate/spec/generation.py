"""What is generated, by what: model, settings, prompts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from calibrate.spec.search_space import SearchSpace
from calibrate.spec.strict import Strict


class ModelSpec(Strict):
    """Which model to calibrate, and on what: the fields of every family. Each family adds its own in a subclass.

    Attributes:
        path: What holds the model, by default relative to the study file.
        family: Name of the model's family.
        torch_dtype: Name of the data type that the model is loaded in.
        device: Where it runs.
        threads: Of the CPU; None leaves their number to torch.
    """

    path: str = Field(min_length=1)
    family: str
    torch_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = Field(default="cpu", pattern=r"^(cpu|mps|cuda(:[0-9]{1,3})?)$")
    threads: int | None = Field(default=None, ge=1, le=4096)

    def refuse_unfit(self, generation: Generation, search: SearchSpace) -> None:
        """Refuses what is right in itself but not for a model of this family.

        Raises:
            ValueError: Naming the first such field, and the mend.
        """

    def refuse_case(self, case: Case) -> None:
        """Refuses a case that says too much or too little for the family; raises `ValueError` from the field on."""
        if case.image is not None:
            raise ValueError(f"image means nothing to family {self.family}; remove it")

    def fixed_parts(self) -> dict[str, Any]:
        """What must stay the same for measurements of one study to be comparable, as plain JSON."""
        return self.model_dump(mode="json")


class Generation(Strict):
    """What all generations of the study share: arguments of the pipeline call, or what a family reads them as.

    `ar_step` and `causal_block_size` belong to families with staggered blocks, whose studies have to say them.
    """

    height: int = Field(ge=16, multiple_of=16)
    width: int = Field(ge=16, multiple_of=16)
    num_frames: int = Field(ge=5)
    num_inference_steps: int = Field(ge=2)
    guidance_scale: float = Field(ge=0)
    ar_step: int = Field(default=0, ge=0)
    causal_block_size: int = Field(default=1, ge=1)
    fps: int = Field(default=24, ge=1)
    negative_prompt: str = ""
    max_sequence_length: int = Field(default=512, ge=1)
    overlap_history: int | None = Field(default=None, ge=1)
    addnoise_condition: float = Field(default=0, ge=0)
    base_num_frames: int = Field(default=97, ge=5)

    def refuse_missing(self, *fields: str) -> None:
        """Refuses a study that leaves one of these fields to its default; raises `ValueError`."""
        for field in fields:
            if field not in self.model_fields_set:
                raise ValueError(f"generation.{field}: this field is missing; add it")

    def refuse_given(self, family: str, *fields: str) -> None:
        """Refuses a study that gives one of these fields another value than its default; raises `ValueError`."""
        for field in fields:
            if getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"generation.{field} means nothing to family {family}; remove it")


class Case(Strict):
    """One prompt with one seed.

    Attributes:
        prompt: What is to be seen.
        seed: Of the noise.
        image: What the video starts from, where the family takes an image: a file, by default relative to the study's.
        image_digest: Of the file's content, found when the study is read.
    """

    prompt: str = Field(min_length=1)
    seed: int = Field(ge=0, lt=2**63)
    image: str | None = Field(default=None, min_length=1, max_length=1000)
    image_digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @model_serializer(mode="wrap")
    def _brief(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without an image, as cases were written before there were some."""
        return {name: value for name, value in whole(self).items() if value is not None}

    @property
    def content(self) -> dict[str, Any]:
        """What makes it the case that it is, wherever its image lies; plain JSON."""
        return self.model_dump(mode="json", exclude={"image"})

    @property
    def label(self) -> str:
        """How tables and evidence name the case."""
        return f"{self.prompt} (seed {self.seed})"
