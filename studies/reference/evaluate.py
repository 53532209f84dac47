"""Evaluation of the reference pipeline on captions and seeds that it was not trained on.

    python -m studies.reference.evaluate --json --clips 48

Colours and initial directions are measured in the decoded pixels; a clip with two objects counts as right when both
are.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from studies.reference import codec, models, world

PSNR_CLIPS = 16
PSNR_SEED = 9_000


def generate(
    pipeline: Any, prompt: str, seed: int, call: Mapping[str, Any] = models.CALL, **changes: Any
) -> world.Frames:
    """Generate one clip.

    Args:
        pipeline: a reference pipeline.
        prompt: a caption of the synthetic world.
        seed: seed of the initial noise.
        call: how the pipeline is meant to be called.
        changes: arguments that differ from that.

    Returns:
        Frames [frames, height, width, 3] in [-1, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    video = pipeline(prompt, generator=generator, output_type="np", **{**call, **changes}).frames[0]
    return np.asarray(video, dtype=np.float32) * 2 - 1


def evaluate(pipeline: Any, clips: int, call: Mapping[str, Any] = models.CALL, **changes: Any) -> dict[str, float]:
    """Generate clips for held-out captions; returns accuracies and the mean seconds a clip takes, decoding included."""
    colours, directions, seconds = [], [], []
    for seed, prompt in enumerate(world.held_out_prompts(clips)):
        began = time.perf_counter()
        frames = generate(pipeline, prompt, seed, call, **changes)
        seconds.append(time.perf_counter() - began)
        tracks = world.measure(frames)
        verdict = world.judge(world.parse_caption(prompt), tracks)
        colours.append(verdict.colours)
        directions.append(verdict.direction)
        seen = ", ".join(f"{track.colour} {track.direction}" for track in tracks) or "nothing"
        marks = "".join("+" if right else "-" for right in (verdict.colours, verdict.direction))
        print(f"{seed + 1}/{clips} {marks} {prompt}: {seen}", file=sys.stderr, flush=True)
    return {
        "n": clips,
        "colour_accuracy": float(np.mean(colours)),
        "direction_accuracy": float(np.mean(directions)),
        "seconds_per_clip": float(np.mean(seconds)),
    }


def vae_psnr(vae: Any, clips: int = PSNR_CLIPS) -> float:
    """Mean PSNR in dB, over a range of 2, of unseen whole clips through the VAE's own encode and decode."""
    rng = np.random.default_rng(PSNR_SEED)
    values = []
    with torch.no_grad():
        for _ in range(clips):
            clip = codec.to_video(world.render(world.sample_scene(rng, "held_out")))
            decoded = vae.decode(vae.encode(clip).latent_dist.mode()).sample
            values.append(10 * np.log10(4 / torch.mean((decoded - clip) ** 2).item()))
    return float(np.mean(values))


def command(load: Callable[[Path], Any], folder: Path, call: Mapping[str, Any], description: str | None) -> None:
    """Command line of an evaluation.

    Args:
        load: loads a pipeline from a folder.
        folder: of the shipped pipeline.
        call: how it is meant to be called.
        description: for the help.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument("--clips", type=int, default=48, help="clips to generate (default: %(default)s)")
    parser.add_argument("--pipeline", type=Path, default=folder)
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=call["guidance_scale"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    pipeline = load(arguments.pipeline)
    result = evaluate(pipeline, arguments.clips, call, guidance_scale=arguments.guidance)
    result["vae_psnr_db"] = vae_psnr(pipeline.vae)
    result = {key: round(value, 4) for key, value in result.items()}
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")


if __name__ == "__main__":
    command(models.load_pipeline, models.PIPELINE_DIR, models.CALL, __doc__)
