"""What is generated, by what: model, settings, prompts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

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

    def fixed_parts(self) -> dict[str, Any]:
        """What must stay the same for measurements of one study to be comparable, as plain JSON."""
        return self.model_dump(mode="json")


class Generation(Strict):
    """What all generations of the study share: arguments of the pipeline call, or what a family reads them as."""

    height: int = Field(ge=16, multiple_of=16)
    width: int = Field(ge=16, multiple_of=16)
    num_frames: int = Field(ge=5)
    num_inference_steps: int = Field(ge=2)
    guidance_scale: float = Field(ge=0)
    ar_step: int = Field(ge=0)
    causal_block_size: int = Field(ge=1)
    fps: int = Field(default=24, ge=1)
    negative_prompt: str = ""
    max_sequence_length: int = Field(default=512, ge=1)
    overlap_history: int | None = Field(default=None, ge=1)
    addnoise_condition: float = Field(default=0, ge=0)
    base_num_frames: int = Field(default=97, ge=5)


class Case(Strict):
    """One prompt with one seed."""

    prompt: str = Field(min_length=1)
    seed: int = Field(ge=0, lt=2**63)

    @property
    def label(self) -> str:
        """How tables and evidence name the case."""
        return f"{self.prompt} (seed {self.seed})"
