"""Frames as what is written and looked at: pixels and video files."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from calibrate.quality.metrics import Frames


def as_pixels(image: Frames) -> np.ndarray:
    """From [0, 1] to uint8."""
    return np.round(image * 255).clip(0, 255).astype(np.uint8)


def write_clip(path: Path, pictures: Iterable[np.ndarray], fps: int, preset: str = "medium", crf: int = 16) -> None:
    """Writes an H.264 mp4.

    Args:
        path: Where.
        pictures: [h, w, 3] uint8 of even size.
        fps: Frames per second.
        preset: Of the encoder.
        crf: Its loss; 0 is none but for the colour's halved resolution.
    """
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": str(crf), "preset": preset})
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
