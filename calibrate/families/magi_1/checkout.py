"""What a checkout of MAGI-1 holds, and whether a study can run on it: all that can be known before weights are loaded.

`scope-calibrate doctor` and the calibration itself ask the same questions here, so that they give the same answers.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import sys
from collections.abc import Iterator
from functools import cached_property, partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from calibrate.errors import CalibrateError
from calibrate.families.magi_1.spec import Magi1Spec
from calibrate.families.target import first_line
from calibrate.families.weights import indexed_weights, stored_parameters
from calibrate.spec.generation import Generation

PACKAGE = "inference"
"""The checkout's topmost package."""

_WEIGHTS = "model.weights"
_Count = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class _Model(_Part):
    num_layers: _Count
    hidden_size: _Count
    ffn_hidden_size: _Count
    num_attention_heads: _Count
    num_query_groups: _Count
    kv_channels: _Count
    patch_size: _Count
    in_channels: _Count
    params_dtype: Literal["torch.float32", "torch.bfloat16", "torch.float16"]


class _Runtime(_Part):
    cfg_number: Literal[1, 3]
    cfg_t_range: Annotated[list[float], Field(min_length=1)]
    prev_chunk_scales: list[float]
    text_scales: list[float]
    noise2clean_kvrange: list[_Count]
    clean_chunk_kvrange: int
    clean_t: float
    chunk_width: _Count
    temporal_downsample_factor: _Count
    load: str
    t5_pretrained: str
    vae_pretrained: str

    @model_validator(mode="after")
    def _one_scale_per_range(self) -> Self:
        for name in ("prev_chunk_scales", "text_scales"):
            if len(getattr(self, name)) != len(self.cfg_t_range):
                raise ValueError(f"{name} must have as many numbers as cfg_t_range")
        if self.cfg_t_range[0] > 0 or sorted(self.cfg_t_range) != self.cfg_t_range:
            raise ValueError("cfg_t_range must begin with 0 and ascend")
        return self


class _Engine(_Part):
    distributed_backend: str
    pp_size: _Count
    cp_size: _Count
    fp8_quant: bool
    distill: bool
    kv_offload: bool
    shortcut_mode: str
    distill_nearly_clean_chunk_threshold: float

    @property
    def weights(self) -> str:
        """The folder below `load` that the official code reads."""
        return "inference_weight" + ".fp8" * self.fp8_quant + ".distill" * self.distill


class Configuration(BaseModel):
    """The configuration file, as far as it is used here."""

    # `model_config` is the file's own name for it, and pydantic's for something else.
    model_config = ConfigDict(extra="allow", frozen=True)

    model: _Model = Field(alias="model_config")
    runtime: _Runtime = Field(alias="runtime_config")
    engine: _Engine = Field(alias="engine_config")

    @property
    def dtype(self) -> str:
        """As studies name it."""
        return self.model.params_dtype.removeprefix("torch.")

    @model_validator(mode="after")
    def _branches(self) -> Self:
        single = self.engine.distill or self.engine.fp8_quant
        if (self.runtime.cfg_number == 1) != single:
            raise ValueError(
                f"runtime_config.cfg_number must be {1 if single else 3}: that is what "
                f"{'distilled and quantised models have' if single else 'models neither distilled nor quantised have'}"
            )
        return self


class Checkout:
    """A checkout with the configuration that a study names; made only if the study can run with it."""

    def __init__(self, folder: Path, spec: Magi1Spec, generation: Generation) -> None:
        """Reads the configuration and holds it against the study.

        Args:
            folder: The checkout.
            spec: The study's model.
            generation: The study's settings.

        Raises:
            CalibrateError: Naming the first field that is in the way, and the mend.
        """
        if not (folder / PACKAGE / "pipeline").is_dir():
            raise CalibrateError(
                f"model.path: {folder} is no checkout of MAGI-1 (it has no {PACKAGE}/pipeline); clone "
                "github.com/SandAI-org/MAGI-1 and name its folder."
            )
        self.folder = folder
        self.path = folder / spec.config
        self.root = folder / (spec.weights or ".")
        self.config = _read(self.path)
        self._refuse_unfit(spec, generation)

    def _refuse_unfit(self, spec: Magi1Spec, generation: Generation) -> None:
        name, runtime, engine = self.path.name, self.config.runtime, self.config.engine
        for field, ours, source, theirs in (
            ("generation.guidance_scale", generation.guidance_scale, "cfg_number", runtime.cfg_number),
            ("generation.causal_block_size", generation.causal_block_size, "chunk_width", runtime.chunk_width),
            ("model.torch_dtype", spec.torch_dtype, "params_dtype", self.config.dtype),
        ):
            if ours != theirs:
                raise CalibrateError(f"{field}: is {ours}, but {name} says {theirs} ({source}); change one of the two.")
        if engine.cp_size > 1 or engine.pp_size > 1:
            raise CalibrateError(
                f"model.config: {name} asks for {engine.cp_size * engine.pp_size} processes per video; set "
                "engine_config.cp_size and pp_size to 1 and give the run more --devices instead."
            )
        if engine.distributed_backend == "nccl" and not spec.device.startswith("cuda"):
            raise CalibrateError(
                f"model.device: is {spec.device}, but {name} has distributed_backend nccl, which is for GPUs; set it "
                "to cuda."
            )
        stages = len(runtime.noise2clean_kvrange)
        if stages and generation.num_inference_steps % stages:
            raise CalibrateError(
                f"generation.num_inference_steps: must be a multiple of {stages}, the number of context ranges "
                f"(noise2clean_kvrange) in {name}, not {generation.num_inference_steps}."
            )
        if generation.num_frames < runtime.temporal_downsample_factor:
            raise CalibrateError(
                f"generation.num_frames: must be {runtime.temporal_downsample_factor} or more, the frames of one "
                f"latent frame, not {generation.num_frames}."
            )

    @cached_property
    def parts(self) -> dict[str, Path]:
        """What the configuration names, by its field: transformer's folder, text encoder, VAE.

        Raises:
            CalibrateError: If one of them is not there.
        """
        runtime = self.config.runtime
        found = {name: self.root / getattr(runtime, name) for name in ("load", "t5_pretrained", "vae_pretrained")}
        for name, path in found.items():
            if not path.exists():
                raise CalibrateError(
                    f"model.weights: {path} is missing, which {self.path.name} names as {name}; download it, or name "
                    "the folder that holds it."
                )
        return found

    @cached_property
    def weights(self) -> list[Path]:
        """The transformer's safetensors files, all complete.

        Raises:
            CalibrateError: If there are none, or not all of them.
        """
        folder = self.parts["load"] / self.config.engine.weights
        if next(folder.glob("*.zst"), None):
            raise CalibrateError(f"model.weights: {folder} holds compressed files; decompress them with zstd -d.")
        single = folder / "model.safetensors"
        files = indexed_weights(folder / "model.safetensors.index.json", _WEIGHTS) or [single]
        if not files[0].is_file():
            raise CalibrateError(
                f"model.weights: {folder} holds no weights (neither {single.name} nor {single.name}.index.json); "
                "download them again."
            )
        stored_parameters(files, _WEIGHTS)
        return files

    def code(self) -> tuple[ModuleType, Any]:
        """`inference.pipeline.pipeline` of the checkout, and the configuration as it reads it.

        Raises:
            CalibrateError: If the code cannot be imported, with what is missing, or does not accept the configuration.
        """
        package = import_pipeline(self.folder)
        try:
            return package, package.MagiConfig.from_json(str(self.path))
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise CalibrateError(
                f"model.config: the checkout's code does not accept {self.path.name}: {first_line(error)}; take one "
                "of its examples."
            ) from error


def _read(path: Path) -> Configuration:
    """A configuration's content.

    Raises:
        CalibrateError: If it is missing or damaged, or a field is wrong.
    """
    mend = "take one of the checkout's examples."
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise CalibrateError(f"model.config: {path} is missing or damaged ({first_line(error)}); {mend}") from error
    try:
        return Configuration.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        said = f"{field}: {message[0].lower()}{message[1:]}" if field else message
        raise CalibrateError(f"model.config: {path.name}: {said}; {mend}") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number that JSON knows")


def import_pipeline(checkout: Path) -> ModuleType:
    """Imports `inference.pipeline.pipeline` of a checkout; one process can only have one.

    Raises:
        CalibrateError: If the checkout's code cannot be imported, or that of another checkout has been.
    """
    checkout = Path(os.path.realpath(checkout))
    folder = checkout / PACKAGE
    # The code reads it when it is imported, by default relative to the folder that it is started in.
    os.environ.setdefault("SPECIAL_TOKEN_PATH", str(checkout / "example" / "assets" / "special_tokens.npz"))
    own_package(folder)
    try:
        package = import_module(f"{PACKAGE}.pipeline.pipeline")
    except ModuleNotFoundError as error:
        missing = sorted({*_missing(folder), str(error.name).partition(".")[0]})
        forget_package()
        raise CalibrateError(
            f"model.path: MAGI-1's code needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            "installed; the README says under MAGI-1 how to."
        ) from error
    except Exception as error:  # whatever code of others may raise
        forget_package()
        raise CalibrateError(
            f"model.path: MAGI-1's code cannot be imported ({type(error).__name__}: {first_line(error)}); check the "
            "versions of what it needs against the README."
        ) from error
    _quieten()
    return package


def special_tokens(package: ModuleType) -> list[str]:
    """What the environment (PAD_HQ, PAD_DURATION, ...) makes the code put before every prompt."""
    return list(
        sys.modules[package.__name__.replace("pipeline.pipeline", "pipeline.prompt_process")].get_special_token_keys()
    )


def own_package(folder: Path) -> None:
    """Makes `folder` the package `inference`, whatever else has that name on the path.

    The official package has no `__init__.py`, so Python would prefer any other of its name that has one.

    Raises:
        CalibrateError: If another one has been imported.
    """
    present = sys.modules.get(PACKAGE)
    if present is not None:
        if str(folder) not in list(getattr(present, "__path__", ())):
            raise CalibrateError(
                f"model.path: another package called {PACKAGE} is in the way "
                f"({getattr(present, '__file__', None) or next(iter(getattr(present, '__path__', ())), 'built in')}); "
                "start a process of its own for this one."
            )
        return
    initial = folder / "__init__.py"
    spec: ModuleSpec | None
    if initial.is_file():
        spec = spec_from_file_location(PACKAGE, initial, submodule_search_locations=[str(folder)])
    else:
        spec = ModuleSpec(PACKAGE, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[PACKAGE] = module
    if spec.loader is not None and initial.is_file():
        spec.loader.exec_module(module)


def forget_package() -> dict[str, ModuleType]:
    """Takes the package out of what has been imported, so that another can be.

    Returns:
        Its modules by name, which `sys.modules` may be given back.
    """
    names = [name for name in sys.modules if name.partition(".")[0] == PACKAGE]
    return {name: sys.modules.pop(name) for name in names}


def _quieten() -> None:
    """Keeps the package's log and progress bars off the screen: the bars would run into ours.

    `TQDM_DISABLE` counts when tqdm is imported, which torch did long ago.
    """
    logging.getLogger("magi_logger").setLevel(logging.WARNING)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == PACKAGE and isinstance(getattr(module, "tqdm", None), type):
            module.tqdm = partial(module.tqdm, disable=True)  # type: ignore[attr-defined]


def _missing(folder: Path) -> Iterator[str]:
    """Packages that code below a folder imports without condition, and that are not installed."""
    for path in sorted(folder.rglob("*.py")):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Import):
                names = [alias.name for alias in statement.names]
            elif isinstance(statement, ast.ImportFrom) and not statement.level:
                names = [str(statement.module)]
            else:
                continue
            yield from (top for top in (name.partition(".")[0] for name in names) if not _is_installed(top))


def _is_installed(name: str) -> bool:
    try:
        return name in sys.modules or find_spec(name) is not None
    except (ImportError, ValueError):
        return False
