"""What families have in common whose models are diffusers folders: their study fields, weights and checks."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from calibrate.errors import CalibrateError
from calibrate.families.family import Family
from calibrate.families.weights import indexed_weights
from calibrate.spec.generation import Generation, ModelSpec

# What diffusers and transformers call a component's weights, and their names with a variant.
_WEIGHTS = ("diffusion_pytorch_model", "model")
_VARIANT = re.compile(rf"(?:{'|'.join(_WEIGHTS)})\.([A-Za-z0-9_-]+?)(?:-\d+-of-\d+)?\.safetensors")


class DiffusersSpec(ModelSpec):
    """The study fields of a diffusers folder.

    Attributes:
        pipeline_class: The class that the folder must name.
        variant: Of the weights' file names if they have one, such as fp16.
    """

    pipeline_class: str
    variant: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]+$", max_length=40)


Spec = TypeVar("Spec", bound=DiffusersSpec)


class DiffusersFamily(Family[Spec]):
    """A family whose models are diffusers folders, which hold all that a generation takes.

    Attributes:
        components: Those with weights that a generation keeps on its device, the transformer first.
    """

    self_contained = True
    components: tuple[str, ...] = ("transformer", "text_encoder", "vae")

    @property
    @abstractmethod
    def checkpoints(self) -> str:
        """What to choose a checkpoint of, for the sentence about a folder of another pipeline."""

    @property
    def holder(self) -> str:
        """What `model.path` names."""
        return f"a diffusers folder of {self.spec.model_fields['pipeline_class'].default}"

    def recognises(self, folder: Path) -> bool:
        """Whether the folder names this family's pipeline."""
        try:
            return bool(pipeline_class(folder) == self.spec.model_fields["pipeline_class"].default)
        except CalibrateError:
            return False

    def refuse_other(self, folder: Path, spec: Spec) -> None:
        """Refuses a folder of another pipeline.

        Raises:
            CalibrateError: If the folder is no diffusers folder, or names another pipeline.
        """
        held = pipeline_class(folder)
        if held != spec.pipeline_class:
            raise CalibrateError(
                f"model.path: {folder} holds a {held}, not a {spec.pipeline_class}; choose {self.checkpoints}."
            )

    def weights(self, folder: Path, spec: Spec, generation: Generation) -> list[list[Path]]:
        """The files of each of `components`."""
        self.refuse_other(folder, spec)
        parts = [folder / component for component in self.components]
        for part in parts:
            read_config(part)
        return [pipeline_weights(part, spec.variant) for part in parts]

    def cut_prompt(self, folder: Path, spec: Spec, generation: Generation, prompts: Sequence[str]) -> str | None:
        """The first prompt with more tokens than `generation.max_sequence_length`."""
        import transformers

        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        except (OSError, ValueError) as error:
            raise CalibrateError("model.path: its tokenizer cannot be loaded; download the pipeline again.") from error
        limit = generation.max_sequence_length
        for prompt in prompts:
            length = len(tokenizer(prompt)["input_ids"])
            if length > limit:
                return (
                    f"{prompt[:40]!r}... has {length} tokens and is cut to generation.max_sequence_length {limit}; "
                    "shorten it or raise the limit"
                )
        return None


def pipeline_class(folder: Path) -> str:
    """Which pipeline a folder names.

    Raises:
        CalibrateError: If it is no diffusers folder, or damaged.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise CalibrateError(
            f"model.path: {folder} is not a diffusers pipeline (it has no model_index.json); check the path."
        )
    try:
        return str(json.loads(index.read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrateError(f"model.path: {index} is damaged; download the pipeline again.") from error


def read_config(component: Path) -> dict[str, Any]:
    """The `config.json` of a pipeline's component.

    Raises:
        CalibrateError: If it is missing or damaged.
    """
    path = component / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CalibrateError(f"model.path: {path} is missing or damaged; download the pipeline again.") from error


@contextmanager
def complete_configuration(folder: Path) -> Iterator[None]:
    """Says of a configuration that lacks something, or has it in another form, that it is incomplete."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise CalibrateError(
            f"model.path: {folder} has an incomplete transformer/config.json or vae/config.json ({error}); "
            "download the pipeline again."
        ) from error


def pipeline_weights(component: Path, variant: str | None) -> list[Path]:
    """The files that a pipeline reads a component's weights from, whatever else lies beside them.

    Args:
        component: A folder of a diffusers pipeline.
        variant: Of the file names, such as ``fp16``; a component without any is read as if none were asked for.

    Raises:
        CalibrateError: If there are none, or a shard is missing.
    """
    for ending in (f".{variant}", "") if variant else ("",):
        for stem in _WEIGHTS:
            single = component / f"{stem}{ending}.safetensors"
            shards = indexed_weights(component / f"{stem}.safetensors.index{ending}.json")
            if shards or single.is_file():
                return shards or [single]
    others = sorted({match[1] for path in component.glob("*.safetensors") if (match := _VARIANT.fullmatch(path.name))})
    if others:
        raise CalibrateError(
            f"model.variant: {component} holds weights of variant {' and '.join(others)} alone; set model.variant to "
            f"{others[0]}."
        )
    raise CalibrateError(f"model.path: {component} holds no weights in safetensors files; download the pipeline again.")
