"""The usual script of diffusers with a profile: one more line, and a report of what it saved.

python examples/diffusers_script.py /models/SkyReels-V2 profiles/my-skyreels.json "a fox running through snow" a.mp4
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import encode_video

from scope_runtime import Profile, apply_scope


def main(arguments: Sequence[str] | None = None) -> None:
    """Generates one clip."""
    parser = argparse.ArgumentParser(description="Generate a clip with an accelerated SkyReels-V2 pipeline.")
    parser.add_argument("model", help="a diffusers folder, or the name of a model on the Hub")
    parser.add_argument("profile", help="profile.json or hf://owner/name/profile.json")
    parser.add_argument("prompt")
    parser.add_argument("output", help="an mp4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--fps", type=int, default=24)
    given = parser.parse_args(arguments)

    pipe = DiffusionPipeline.from_pretrained(given.model, dtype=getattr(torch, given.dtype)).to(given.device)
    profile = Profile.load(given.profile)
    calibrated = profile.settings
    with apply_scope(pipe, profile) as scope:
        frames = pipe(
            given.prompt,
            height=calibrated.height,
            width=calibrated.width,
            num_frames=calibrated.num_frames,
            num_inference_steps=calibrated.num_inference_steps,
            guidance_scale=calibrated.guidance_scale,
            ar_step=calibrated.ar_step,
            causal_block_size=calibrated.causal_block_size,
            generator=torch.Generator().manual_seed(given.seed),
        ).frames[0]
    print(scope.report)
    encode_video(frames, given.fps, given.output)


if __name__ == "__main__":
    main()
