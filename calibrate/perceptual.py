"""Perceptual scores whose weights no package brings: for the `quality.scores` of those who have them.

quality:
  scores:
    - {name: lpips, of: pair, function: "calibrate.perceptual:lpips", options: {weights: lpips-alex.safetensors}}
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from calibrate.errors import CalibrateError
from calibrate.quality import Frames, mean_over_frames


def lpips(reference: Frames, candidate: Frames, *, weights: str, net: str = "alex", every: int = 1) -> float:
    """Mean LPIPS distance over frames; 0 is identical.

    Args:
        reference: Frames [T, H, W, 3] in [0, 1].
        candidate: The same shape.
        weights: The state of `lpips.LPIPS(net=...)`, trunk included, as a safetensors file.
        net: Its trunk: alex, vgg or squeeze.
        every: Takes every so-manieth frame; odd numbers do not fall in step with repeated frames.

    Raises:
        CalibrateError: If the package lpips is not installed or the weights do not fit.
    """
    model = _lpips_model(weights, net)
    return mean_over_frames(lambda a, b: model(a * 2 - 1, b * 2 - 1).flatten(), reference[::every], candidate[::every])


@cache
def _lpips_model(weights: str, net: str) -> Any:
    try:
        import lpips as package
    except (ImportError, RuntimeError) as error:  # torchvision beside another torch raises the latter
        raise CalibrateError(
            "quality.scores: LPIPS needs the package lpips and a torchvision that fits the installed torch; install "
            "scope-calibrate[lpips], or leave the score out."
        ) from error
    model = package.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    try:
        model.load_state_dict(load_file(Path(weights)))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CalibrateError(
            f"quality.scores: {weights} holds no weights of LPIPS with trunk {net}; save the state of "
            "lpips.LPIPS(net=...) with safetensors and name that file as options.weights."
        ) from error
    return model.eval()
