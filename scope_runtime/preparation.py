"""What a pipeline itself is set up with, beside the policy: attention backend, weights, compiled blocks."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from typing import Any

from scope_runtime import _check
from scope_runtime.errors import ProfileError, named, shown
from scope_runtime.families import adapter_class

BFLOAT16 = "bfloat16"
DYNAMIC_INT8 = "dynamic-int8"
ATTENTION_BACKENDS = (
    "native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math", "flex", "flash", "_flash_3",
    "sage", "xformers",
)  # fmt: skip
"""Those of diffusers that are set on request. Those that fetch code from the network are not: a profile is a file."""
WEIGHTS = (BFLOAT16, "int8", "float8", DYNAMIC_INT8)
"""What weights can be stored in: see `Preparation.weights`."""
MEND = "apply_scope with prepare=True sets it"


@dataclass(frozen=True)
class Preparation:
    """What changes the pipeline rather than the policy. What is not given is left as it is, whatever that is.

    Attributes:
        attention_backend: Of diffusers, for all attention of the transformer; see `ATTENTION_BACKENDS`.
        weights: What the transformer's weights are made of: ``bfloat16`` (all of them, but for those that the model
            keeps in float32), or the linear layers of its blocks in eight bits: ``int8`` and ``float8`` by torchao
            (weights only), ``dynamic-int8`` by torch (on a CPU, from float32; inputs as well).
        compiled: Whether its repeated blocks are compiled.
    """

    attention_backend: str | None = None
    weights: str | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        for key in ("attention_backend", "weights"):
            if getattr(self, key) is not None:
                _check.string(vars(self), key, "settings.preparation")
        if not isinstance(self.compiled, bool):
            raise ProfileError("settings.preparation.compiled", f"must be true or false, not {shown(self.compiled)}")

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return self != Preparation()

    @property
    def dtype(self) -> str | None:
        """What the transformer computes in once it is prepared; None where it is what it was loaded in."""
        return BFLOAT16 if self.weights == BFLOAT16 else None

    def mismatches(self, actual: Preparation) -> list[str]:
        """One phrase per thing that is asked for and is not so in ``actual``, as it was read off a pipeline."""
        found = []
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(actual, f.name)
            # What weights in another dtype compute in is a setting of its own.
            asked = mine and not (f.name == "weights" and self.dtype)
            if asked and mine != theirs:
                now = "false" if theirs is False else "as loaded" if theirs is None else named(theirs)
                found.append(
                    f"preparation.{f.name} is {now}, calibrated for {'true' if mine is True else named(mine)} ({MEND})"
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Preparation:
        """Inverse of `to_dict`; every field must be there."""
        return cls(**_check.complete(data, [f.name for f in fields(cls)], "settings.preparation"))

    def __str__(self) -> str:
        parts = [f"{self.attention_backend} attention"] if self.attention_backend else []
        parts += [f"{self.weights} weights"] if self.weights else []
        parts += ["compiled blocks"] if self.compiled else []
        return ", ".join(parts) or "as loaded"


def prepare(pipe: Any, preparation: Preparation) -> AbstractContextManager[None]:
    """Sets a pipeline up as asked while the context lasts, and then gives it back as it was, bit for bit.

    The process-wide default attention backend stays what it is. Weights that are replaced are kept in host memory.

    Args:
        pipe: A pipeline of a known family that nothing is attached to.
        preparation: What is asked for.

    Raises:
        AttachError: On entering, if that cannot be set here: names the field and the mend.
    """
    context: AbstractContextManager[None] = adapter_class(pipe).prepare(pipe, preparation)
    return context
