"""Scores beside the built-in proxies: MS-SSIM and VMAF where they can be had, as evidence, and the study's own.

A study names functions of its own as `module:function`; they are imported when they are needed, so calibrate depends on
none of them. They are only ever taken from a study file, which its user wrote, never from a profile.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from pytorch_msssim import ms_ssim

from calibrate.errors import CalibrateError
from calibrate.quality.metrics import Frames, mean_over_frames
from calibrate.spec.running import Score
from calibrate.spec.score_floor import stock_name

# Four halvings with an 11-pixel window ask for more than this.
_MS_SSIM_ABOVE = 160
# libvmaf breaks down on frames of 16 pixels.
_VMAF_FROM = 32


class Scores:
    """The further scores of a study, its functions loaded and ready."""

    def __init__(self, specs: Sequence[Score] = ()) -> None:
        """Loads the functions.

        Args:
            specs: What the study asks for.

        Raises:
            CalibrateError: If a module or function is not there.
        """
        self._specs = [(spec, _load(spec.function)) for spec in specs]

    def measure(self, prompt: str, reference: Frames, candidate: Frames) -> dict[str, float]:
        """Scores a candidate's clip.

        Args:
            prompt: What both clips were generated from.
            reference: The stock clip [T, H, W, 3] in [0, 1].
            candidate: The same shape.

        Returns:
            `ms_ssim` for frames above 160 pixels, `vmaf` where an ffmpeg with libvmaf is installed, and by their names
            the study's own; a score of single clips comes with that of the stock clip as `<name>_stock`.

        Raises:
            CalibrateError: If a function fails or gives something that is no finite number.
        """
        found = {}
        smallest = min(reference.shape[1:3])
        if smallest > _MS_SSIM_ABOVE:
            found["ms_ssim"] = _ms_ssim(reference, candidate)
        if smallest >= _VMAF_FROM and (ffmpeg := vmaf_program()):
            found["vmaf"] = _vmaf(ffmpeg, reference, candidate)
        return found | self.of_clip(prompt, reference, candidate) | self.of_stock(prompt, reference)

    def of_clip(self, prompt: str, reference: Frames, candidate: Frames) -> dict[str, float]:
        """The study's own scores of a candidate's clip; see `measure`."""
        return {
            spec.name: _call(spec, function, reference if spec.of == "pair" else prompt, candidate)
            for spec, function in self._specs
        }

    def of_stock(self, prompt: str, reference: Frames) -> dict[str, float]:
        """Those of single clips, of the stock clip, as `<name>_stock`; see `measure`."""
        return {
            stock_name(spec.name): _call(spec, function, prompt, reference)
            for spec, function in self._specs
            if spec.of == "clip"
        }


@cache
def vmaf_program() -> str | None:
    """An ffmpeg with libvmaf, as the package imageio-ffmpeg brings it (`scope-calibrate[vmaf]`); None without one."""
    try:
        import imageio_ffmpeg
    except ImportError:
        return None
    program = cast(str, imageio_ffmpeg.get_ffmpeg_exe())
    filters = subprocess.run(  # noqa: S603
        [program, "-hide_banner", "-filters"], capture_output=True, text=True, check=False
    )
    return program if "libvmaf" in filters.stdout else None


def _load(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise CalibrateError(
            f"quality.scores: {name} cannot be loaded ({error}); install what it needs, or name the folder that "
            "holds its module in PYTHONPATH."
        ) from error
    return cast(Callable[..., Any], function)


def _call(spec: Score, function: Callable[..., Any], *arguments: Any) -> float:
    try:
        value = float(function(*arguments, **spec.options))
    except CalibrateError:
        raise
    except Exception as error:
        raise CalibrateError(f"quality.scores: {spec.name} failed: {type(error).__name__}: {error}.") from error
    if not np.isfinite(value):
        raise CalibrateError(f"quality.scores: {spec.name} gave {value}, which is no finite number.")
    return value


def _ms_ssim(reference: Frames, candidate: Frames) -> float:
    return mean_over_frames(partial(ms_ssim, data_range=1.0, size_average=False), reference, candidate)


def _vmaf(ffmpeg: str, reference: Frames, candidate: Frames) -> float:
    """Mean VMAF over frames, 0 to 100; frames keep their full colour resolution on the way."""
    _, height, width, _ = reference.shape
    with tempfile.TemporaryDirectory() as folder:
        inputs: list[str] = []
        for name, clip in (("candidate", candidate), ("reference", reference)):
            path = Path(folder) / name
            path.write_bytes(np.round(clip * 255).clip(0, 255).astype(np.uint8).tobytes())
            inputs += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-i", str(path)]
        result = subprocess.run(  # noqa: S603
            [
                ffmpeg, "-v", "error", *inputs, "-lavfi",
                "[0:v]format=yuv444p[c];[1:v]format=yuv444p[r];[c][r]libvmaf=log_fmt=json:log_path=log.json",
                "-f", "null", "-",
            ],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if result.returncode:
            raise CalibrateError(f"VMAF could not be measured: {result.stderr.strip()[:200] or 'ffmpeg failed'}.")
        log: Mapping[str, Any] = json.loads((Path(folder) / "log.json").read_text())
    return float(log["pooled_metrics"]["vmaf"]["mean"])
