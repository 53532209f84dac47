"""One package per model family, and what all families share.

In comes what a study says of its model; out comes a `Target`, which generates and decodes, and what can be known of it
without loading: footprint and checks. Nothing outside a family's package asks which family it has.

A new family is a package here and a line in `FAMILIES`. The package's `__init__` defines a `Family`
(`DiffusersFamily` for a diffusers folder) and imports neither torch nor diffusers; `spec.py` holds its study fields,
`target.py` its `Target`. What accelerates it is an adapter of `scope_runtime`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import PlainValidator, SerializeAsAny, ValidationError

from calibrate.families.family import Family
from calibrate.families.framepack import Framepack
from calibrate.families.helios import Helios
from calibrate.families.magi_1 import Magi1
from calibrate.families.skyreels_v2 import SkyReelsV2
from calibrate.spec.generation import Generation, ModelSpec

if TYPE_CHECKING:
    from calibrate.families.target import Target

# The first is that of study files that name none.
FAMILIES: tuple[Family[Any], ...] = (
    SkyReelsV2(),
    Magi1(),
    Helios(),
    Framepack(),
)


def family_of(model: ModelSpec | Mapping[str, Any]) -> Family[Any]:
    """The family that a study's `model` names, read or as it was written.

    Raises:
        ValidationError: If there is no such family, naming those that there are.
    """
    said = model.family if isinstance(model, ModelSpec) else model.get("family", FAMILIES[0].name)
    for family in FAMILIES:
        if family.name == said:
            return family
    *others, last = (repr(family.name) for family in FAMILIES)
    raise ValidationError.from_exception_data(
        "model",
        [
            {
                "type": "literal_error",
                "loc": ("family",),
                "input": said,
                "ctx": {"expected": f"{', '.join(others)} or {last}"},
            }
        ],
    )


def load_target(folder: Path, spec: ModelSpec, generation: Generation) -> Target:
    """Loads the model that a study names.

    Args:
        folder: `model.path`.
        spec: Family, data type, device and number of CPU threads.
        generation: What all generations share.

    Raises:
        CalibrateError: If the folder holds no such model, or the device is not there.
    """
    import torch

    from calibrate.families.devices import require_device

    require_device(spec.device)
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    return family_of(spec).open(folder, spec, generation)


def _read(model: Any) -> ModelSpec:
    """A study's `model` as the class of the family that it names; a field of another family has no say there."""
    if not isinstance(model, dict):
        # What is no mapping is refused like any other part of a study.
        return model if isinstance(model, ModelSpec) else FAMILIES[0].spec.model_validate(model)
    family = family_of(model)
    own, kept = family.spec.model_fields, {}
    for name, value in model.items():
        foreign = [other.spec.model_fields[name] for other in FAMILIES if name in other.spec.model_fields]
        if name in own or not foreign:
            kept[name] = value
        elif value is not None and all(value != field.default for field in foreign):
            raise ValueError(f"{name} means nothing to family {family.name}; remove it or change family")
    return family.spec.model_validate(kept)


AnyModel = Annotated[SerializeAsAny[ModelSpec], PlainValidator(_read)]
"""A study's `model`: the union of the families' classes, told apart by `family`.

No union of pydantic's: that would put the family's name into the place of every error, and it would be closed when the
class of a study is made.
"""
