"""What generations of a study take in memory, disk and arithmetic, from configuration files alone: no weights loaded.

Everything here is an estimate. Weights and context are exact up to alignment; activations are not counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calibrate.errors import CalibrateError
from calibrate.study_file import Generation, ModelSpec
from calibrate.windows import windows_of
from scope_runtime.context import context_bytes

_FLOAT32_BYTES = 4
_DEFAULT_REACH = 1024  # the transformer's own default
# What diffusers and transformers call a component's weights, and their names with a variant.
_WEIGHTS = ("diffusion_pytorch_model", "model")
_VARIANT = re.compile(rf"(?:{'|'.join(_WEIGHTS)})\.([A-Za-z0-9_-]+?)(?:-\d+-of-\d+)?\.safetensors")
_MAGI_1_PIXELS = 8  # per latent pixel, in each direction


@dataclass(frozen=True)
class Footprint:
    """The shapes that a model's configuration and a study's generation settings give.

    Attributes:
        layers: Of the transformer.
        width: Heads times head dimension.
        ffn_width: Of the feed-forward layers.
        channels: Of the latents.
        window_lengths: Latent frames of each window of a generation; a long video has several.
        latent_height: In latent pixels.
        latent_width: In latent pixels.
        patches: Tokens per latent frame.
        branches: Guidance branches.
        itemsize: Bytes per number in the study's data type.
        generation: The study's settings.
    """

    layers: int
    width: int
    ffn_width: int
    channels: int
    window_lengths: tuple[int, ...]
    latent_height: int
    latent_width: int
    patches: int
    branches: int
    itemsize: int
    generation: Generation

    @classmethod
    def of(cls, folder: Path, generation: Generation, torch_dtype: str) -> Footprint:
        """Reads a pipeline's configuration.

        Args:
            folder: A diffusers folder.
            generation: Settings of the pipeline call.
            torch_dtype: Name of the data type that the pipeline is loaded in.

        Raises:
            CalibrateError: If a configuration file is missing or lacks a field.
        """
        transformer, vae = read_config(folder / "transformer"), read_config(folder / "vae")
        try:
            _, patch_height, patch_width = transformer["patch_size"]
            halved_in_time = vae["temperal_downsample"]
            height, width = (size // 2 ** len(halved_in_time) for size in (generation.height, generation.width))
            lengths = windows_of(generation, 2 ** sum(halved_in_time))
            reach = transformer.get("rope_max_seq_len", _DEFAULT_REACH)
            for name, size in (
                ("num_frames", lengths[0]), ("height", height // patch_height), ("width", width // patch_width)
            ):  # fmt: skip
                if size > reach:
                    raise CalibrateError(
                        f"generation.{name}: {getattr(generation, name)} gives {size} positions, more than the {reach} "
                        "that the transformer knows; lower it."
                    )
            return cls(
                layers=transformer["num_layers"],
                width=transformer["num_attention_heads"] * transformer["attention_head_dim"],
                ffn_width=transformer["ffn_dim"],
                channels=transformer["in_channels"],
                window_lengths=lengths,
                latent_height=height,
                latent_width=width,
                patches=(height // patch_height) * (width // patch_width),
                branches=2 if generation.guidance_scale > 1 else 1,
                itemsize=getattr(torch, torch_dtype).itemsize,
                generation=generation,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrateError(
                f"model.path: {folder} has an incomplete transformer/config.json or vae/config.json ({error}); "
                "download the pipeline again."
            ) from error

    @property
    def latent_frames(self) -> int:
        """Of the longest window."""
        return self.window_lengths[0]

    @property
    def blocks(self) -> int:
        """Blocks of latent frames that share a noise level, in the longest window."""
        return self.latent_frames // self.generation.causal_block_size

    @property
    def rows(self) -> int:
        """Iterations of the denoising loop in one window."""
        return self.generation.num_inference_steps + self.generation.ar_step * max(0, self.blocks - 1)

    @property
    def context_bytes(self) -> int:
        """Captured keys and values of exact mode at the end of a generation; none under bidirectional attention."""
        if self.generation.causal_block_size == 1:
            return 0
        return context_bytes(
            layers=self.layers,
            width=self.width,
            tokens=self.generation.causal_block_size * self.patches,
            blocks=self.blocks - 1,
            branches=self.branches,
            batch=1,
            itemsize=self.itemsize,
        )

    @property
    def mask_bytes(self) -> int:
        """The dense attention mask that the stock pipeline builds, one byte for each pair of tokens."""
        return (self.latent_frames * self.patches) ** 2 if self.generation.causal_block_size > 1 else 0

    @property
    def baseline_bytes(self) -> int:
        """A baseline's file: latents and decoded frames in float32."""
        settings = self.generation
        frames = settings.num_frames * settings.height * settings.width * 3
        latents = self.channels * sum(self.window_lengths) * self.latent_height * self.latent_width
        return _FLOAT32_BYTES * (frames + latents)

    @property
    def flops(self) -> float:
        """Floating-point operations of one stock generation's transformer calls; text encoder and VAE not counted."""
        tokens = self.latent_frames * self.patches
        projections = 12 * tokens * self.width**2  # self-attention's four, cross-attention's query and output
        feed_forward = 4 * tokens * self.width * self.ffn_width
        attention = 4 * tokens**2 * self.width
        return float(
            len(self.window_lengths)
            * self.rows
            * self.branches
            * self.layers
            * (projections + feed_forward + attention)
        )


@dataclass(frozen=True)
class Magi1Footprint(Footprint):
    """As `Footprint`, for MAGI-1: keys and values are stored once, for the whole video, and read over a few chunks.

    Attributes:
        kv_width: Key heads times head dimension.
        reach: Chunks that one attends to, itself included, at most.
    """

    kv_width: int
    reach: int

    @classmethod
    def of_spec(cls, folder: Path, spec: ModelSpec, generation: Generation) -> Magi1Footprint:
        """Reads the configuration that a study names.

        Args:
            folder: A checkout of the official repository.
            spec: The study's model.
            generation: The study's settings.

        Raises:
            CalibrateError: If the configuration is missing or lacks a field.
        """
        config = read_magi_1_config(folder, spec)
        try:
            model, runtime = config["model_config"], config["runtime_config"]
            chunk = runtime["chunk_width"]
            latent_frames = -(-(generation.num_frames // runtime["temporal_downsample_factor"]) // chunk) * chunk
            height, width = generation.height // _MAGI_1_PIXELS, generation.width // _MAGI_1_PIXELS
            return cls(
                layers=model["num_layers"],
                width=model["num_attention_heads"] * model["kv_channels"],
                ffn_width=model["ffn_hidden_size"],
                channels=model["in_channels"],
                window_lengths=(latent_frames,),
                latent_height=height,
                latent_width=width,
                patches=(height // model["patch_size"]) * (width // model["patch_size"]),
                branches=runtime["cfg_number"],
                itemsize=getattr(torch, spec.torch_dtype).itemsize,
                generation=generation,
                kv_width=model["num_query_groups"] * model["kv_channels"],
                reach=max(runtime["noise2clean_kvrange"], default=latent_frames // chunk),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrateError(
                f"model.config: {spec.config} is incomplete ({error}); take one of the checkout's examples."
            ) from error

    @property
    def context_bytes(self) -> int:
        """The model's own buffer of keys and values."""
        return context_bytes(
            layers=self.layers,
            width=self.kv_width,
            tokens=self.generation.causal_block_size * self.patches,
            blocks=self.blocks,
            branches=1,
            batch=1,
            itemsize=self.itemsize,
        )

    @property
    def mask_bytes(self) -> int:
        """No mask is built."""
        return 0

    @property
    def flops(self) -> float:
        """As for `Footprint`, with every chunk computed once per step and branch."""
        tokens = self.generation.causal_block_size * self.patches
        projections = 4 * tokens * self.width * (3 * self.width + self.kv_width)
        feed_forward = 4 * tokens * self.width * self.ffn_width
        attention = 4 * tokens * min(self.reach, self.blocks) * tokens * self.width
        evaluations = self.blocks * self.generation.num_inference_steps * self.branches
        return float(evaluations * self.layers * (projections + feed_forward + attention))


def footprint_of(folder: Path, spec: ModelSpec, generation: Generation) -> Footprint:
    """The footprint of a study's model, of whatever family; see `Footprint.of`."""
    if spec.family == "magi_1":
        return Magi1Footprint.of_spec(folder, spec, generation)
    return Footprint.of(folder, generation, spec.torch_dtype)


def read_magi_1_config(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """The configuration's JSON that a study of MAGI-1 names.

    Raises:
        CalibrateError: If it is missing or damaged.
    """
    path = folder / str(spec.config)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CalibrateError(f"model.config: {path} is missing or damaged; take one of the checkout's.") from error


def magi_1_weights(folder: Path, spec: ModelSpec) -> Path:
    """The folder of the transformer's safetensors files, as the official code names it."""
    config = read_magi_1_config(folder, spec)
    try:
        load, engine = config["runtime_config"]["load"], config["engine_config"]
        kind = "inference_weight" + ".fp8" * engine["fp8_quant"] + ".distill" * engine["distill"]
        return folder / (spec.weights or ".") / load / kind
    except (KeyError, TypeError) as error:
        raise CalibrateError(
            f"model.config: {spec.config} is incomplete ({error}); take one of the checkout's examples."
        ) from error


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


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, or the shards that its index names; for code that gives them any names.

    Raises:
        CalibrateError: If there are none, or a shard is missing.
    """
    found = _indexed(folder, "*.safetensors.index.json") or sorted(folder.glob("*.safetensors"))
    if not found:
        raise _no_weights(folder)
    return found


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
            shards = _indexed(component, f"{stem}.safetensors.index{ending}.json")
            if shards or single.is_file():
                return shards or [single]
    others = sorted({match[1] for path in component.glob("*.safetensors") if (match := _VARIANT.fullmatch(path.name))})
    if others:
        raise CalibrateError(
            f"model.variant: {component} holds weights of variant {' and '.join(others)} alone; set model.variant to "
            f"{others[0]}."
        )
    raise _no_weights(component)


def _no_weights(folder: Path) -> CalibrateError:
    return CalibrateError(f"model.path: {folder} holds no weights in safetensors files; download the pipeline again.")


def _indexed(component: Path, index: str) -> list[Path]:
    """The shards that an index names, if there is one."""
    for path in sorted(component.glob(index)):
        shards = sorted({component / name for name in json.loads(path.read_text())["weight_map"].values()})
        for shard in shards:
            if not shard.is_file():
                raise CalibrateError(f"model.path: {shard} is missing; download the pipeline again.")
        return shards
    return []


def stored_parameters(files: list[Path]) -> int:
    """How many numbers safetensors files hold, read from their headers.

    Raises:
        CalibrateError: If a file is truncated or damaged.
    """
    return sum(_product(tensor["shape"]) for path in files for tensor in _header(path))


def _header(path: Path) -> Iterator[Mapping[str, Any]]:
    """What a safetensors file says about its tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, path.stat().st_size)))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            end = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
        except (ValueError, KeyError, AttributeError) as error:
            raise CalibrateError(f"model.path: {path} is damaged; download the pipeline again.") from error
    if path.stat().st_size < end:
        raise CalibrateError(f"model.path: {path} is truncated; download the pipeline again.")
    yield from tensors


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
