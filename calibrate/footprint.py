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
    def bidirectional(self) -> bool:
        """Whether every frame attends to all others, so that nothing can be left out of a computed row."""
        return self.generation.causal_block_size == 1

    @property
    def context_bytes(self) -> int:
        """Captured keys and values of exact mode at the end of a generation; none under bidirectional attention."""
        if self.bidirectional:
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


def footprint_of(folder: Path, spec: ModelSpec, generation: Generation) -> Footprint:
    """The footprint of a study's model, of whatever family; see `Footprint.of`."""
    if spec.family == "magi_1":
        from calibrate.magi_1_checkout import Magi1Footprint

        return Magi1Footprint.of_spec(folder, spec, generation)
    return Footprint.of(folder, generation, spec.torch_dtype)


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


def indexed_weights(index: Path, field: str = "model.path") -> list[Path]:
    """The shards that an index names; none where there is no index.

    Args:
        index: The file.
        field: Of the study, which a message names.

    Raises:
        CalibrateError: If a shard is missing, or the index is damaged.
    """
    if not index.is_file():
        return []
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        shards = sorted(index.parent / name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrateError(f"{field}: {index} is damaged; download it again.") from error
    for shard in shards:
        if not shard.is_file():
            raise CalibrateError(f"{field}: {shard} is missing; download it again.")
    return shards


def stored_parameters(files: list[Path], field: str = "model.path") -> int:
    """How many numbers safetensors files hold, read from their headers.

    Args:
        files: The files.
        field: Of the study, which a message names.

    Raises:
        CalibrateError: If a file is truncated or damaged.
    """
    return sum(_product(tensor["shape"]) for path in files for tensor in _header(path, field))


def _header(path: Path, field: str) -> Iterator[Mapping[str, Any]]:
    """What a safetensors file says about its tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, path.stat().st_size)))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            end = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
        except (ValueError, KeyError, AttributeError) as error:
            raise CalibrateError(f"{field}: {path} is damaged; download it again.") from error
    if path.stat().st_size < end:
        raise CalibrateError(f"{field}: {path} is truncated; download it again.")
    yield from tensors


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
