"""What a study says of a MAGI-1 model, and what its other settings mean there."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from calibrate.spec.generation import Generation, ModelSpec
from calibrate.spec.search_space import Learned, SearchSpace


class Magi1Spec(ModelSpec):
    """A checkout of the official repository.

    Of the study's `generation`, `guidance_scale` is MAGI-1's `cfg_number` (3 or 1), `causal_block_size` its
    `chunk_width`, and `ar_step` is `num_steps / window_size`, the steps of a stage.

    Attributes:
        config: Its configuration's JSON, relative to `path`.
        weights: The folder that the paths in there are relative to, itself relative to `path`; the checkout by default.
    """

    family: Literal["magi_1"] = "magi_1"
    config: str = Field(min_length=1)
    weights: str | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _has_config(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("config") is None:
            raise ValueError("config must name MAGI-1's configuration, such as example/4.5B/4.5B_base_config.json")
        return data

    def refuse_unfit(self, generation: Generation, search: SearchSpace) -> None:
        """Refuses what the official code has no place for."""
        generation.refuse_missing("ar_step", "causal_block_size")
        if generation.guidance_scale not in (1, 3):
            raise ValueError(
                f"generation.guidance_scale must be MAGI-1's cfg_number, 3 or (distilled) 1, not "
                f"{generation.guidance_scale:g}"
            )
        if generation.ar_step < 1 or generation.num_inference_steps % generation.ar_step:
            raise ValueError(
                "generation.ar_step must be MAGI-1's num_steps / window_size and so divide num_inference_steps "
                f"({generation.num_inference_steps}), not {generation.ar_step}"
            )
        generation.refuse_given(self.family, "negative_prompt", "overlap_history", "addnoise_condition")
        if search.learned is not None:
            _refuse_plans(generation, search.learned)
        if search.prepares:
            raise ValueError(
                "search.attention_backend, search.weights and search.compile must be left out: MAGI-1's own "
                "configuration chooses kernels and precision"
            )
        for name in ("stale_quantile", "context_window", "context_dtype"):
            if getattr(search, name) != [None]:
                raise ValueError(f"search.{name} must be [null]: keys and values are kept by MAGI-1's own code")

    def fixed_parts(self) -> dict[str, Any]:
        """As for any model, in the form in which the family's first studies were recorded: they can be continued."""
        return super().fixed_parts() | {"pipeline_class": "SkyReelsV2DiffusionForcingPipeline"}


def _refuse_plans(generation: Generation, learned: Learned) -> None:
    """Refuses plans that ask for keys and values which MAGI-1's code does not keep."""
    if "last" in (learned.captures or ()):
        raise ValueError("search.learned.captures must be [clean]: MAGI-1 captures a clean chunk by itself")
    alone = generation.ar_step == generation.num_inference_steps  # one chunk at a time
    if learned.period is not None and not alone and generation.ar_step % learned.period:
        raise ValueError(
            f"search.learned.period must divide generation.ar_step ({generation.ar_step}), not {learned.period}, so "
            "that all chunks of a window are recomputed in the same rows"
        )
