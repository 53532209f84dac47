"""Perceptual scores whose weights no package brings: for the `quality.scores` of those who have them.

quality:
  scores:
    - {name: lpips, of: pair, function: "calibrate.quality.perceptual:lpips", options: {weights: alex.safetensors}}
    - name: imaging
      function: "calibrate.quality.perceptual:vbench"
      options: {dimension: imaging_quality, weights: vbench}
"""

from __future__ import annotations

import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from calibrate.errors import CalibrateError
from calibrate.quality.metrics import Frames, mean_over_frames
from calibrate.quality.video import as_pixels, write_clip

# What VBench's dimensions for clips of any prompt need in its cache folder. A missing file it would try to download.
_VBENCH_WEIGHTS = {
    "subject_consistency": (
        "dino_model/dino_vitbase16_pretrain.pth",
        "dino_model/facebookresearch_dino_main/hubconf.py",
    ),
    "background_consistency": ("clip_model/ViT-B-32.pt",),
    "temporal_flickering": (),
    "motion_smoothness": ("amt_model/amt-s.pth",),
    "dynamic_degree": ("raft_model/models/raft-things.pth",),
    "aesthetic_quality": ("clip_model/ViT-L-14.pt", "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"),
    "imaging_quality": ("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",),
    "overall_consistency": ("ViCLIP/ViClip-InternVid-10M-FLT.pth", "ViCLIP/bpe_simple_vocab_16e6.txt.gz"),
}


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


def vbench(prompt: str, frames: Frames, *, dimension: str, weights: str, device: str = "cpu", fps: int = 24) -> float:
    """One of VBench's dimensions for a single clip, as VBench 0.1.5 computes it for clips of one's own.

    VBench loads its weights itself, and they are pickles: use files from a source that you trust.

    Args:
        prompt: Of the clip; `overall_consistency` looks at it.
        frames: [T, H, W, 3] in [0, 1].
        dimension: Such as `imaging_quality`.
        weights: A folder laid out as VBench's cache folder. Nothing is downloaded.
        device: Where VBench runs.
        fps: Of the clip.

    Raises:
        CalibrateError: If the dimension is not one of these, a file of weights is missing, or VBench is not installed.
    """
    if dimension not in _VBENCH_WEIGHTS:
        raise CalibrateError(
            f"quality.scores: VBench has no dimension {dimension!r} for clips of one's own; choose one of "
            f"{', '.join(_VBENCH_WEIGHTS)}."
        )
    for name in _VBENCH_WEIGHTS[dimension]:
        if not (Path(weights) / name).is_file():
            raise CalibrateError(
                f"quality.scores: VBench's {dimension} needs {name} in the folder {weights}; put it there, name "
                "another folder as options.weights, or leave the score out."
            )
    # VBench reads the folder's name when it is imported.
    os.environ["VBENCH_CACHE_DIR"] = str(Path(weights).resolve())
    try:
        from vbench import VBench
    except (ImportError, RuntimeError) as error:
        raise CalibrateError(
            "quality.scores: VBench needs the package vbench and what it depends on; install it into this environment, "
            "or leave the score out."
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        clips, results = Path(folder) / "clips", Path(folder) / "results"
        clips.mkdir()
        # The encoder needs even sizes.
        height, width = (size // 2 * 2 for size in frames.shape[1:3])
        clip = clips / "clip.mp4"
        write_clip(clip, (as_pixels(frame[:height, :width]) for frame in frames), fps, crf=0)
        VBench(device, "", str(results)).evaluate(
            videos_path=str(clips),
            name="clip",
            prompt_list={str(clip): prompt},
            dimension_list=[dimension],
            local=True,
            read_frame=False,
            mode="custom_input",
            imaging_quality_preprocessing_mode="longer",
        )
        found = json.loads((results / "clip_eval_results.json").read_text())
    return float(found[dimension][0])
