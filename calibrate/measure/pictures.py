"""The comparison clip, as bytes that are ready to be written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np

from calibrate.quality.metrics import Frames
from calibrate.quality.video import as_pixels, write_clip

# Small clips are enlarged to about this height, so that single pixels can be seen.
_WATCHABLE_HEIGHT = 256
_DIFFERENCE_GAIN = 8
_CAPTION_HEIGHT = 32
_GAP = 8
_DARK = 24


def comparison_clip(stock: Frames, scope: Frames, fps: int, preset: str = "medium") -> bytes:
    """An H.264 mp4 of stock, SCOPE and their amplified difference side by side.

    The difference is shown around mid-grey, 8 times as strong as it is.

    Args:
        stock: Frames [T, H, W, 3] in [0, 1].
        scope: The same shape.
        fps: Frames per second.
        preset: Of the encoder: how much time it takes to make the file smaller.

    Returns:
        The file's content; it starts playing before it is loaded in full, in browsers too.
    """
    # To move the index to the front, the muxer opens its output a second time; so that must be a file.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        scale = max(1, round(_WATCHABLE_HEIGHT / stock.shape[1]))
        write_clip(path, (_side_by_side(a, b, scale) for a, b in zip(stock, scope, strict=True)), fps, preset)
        return path.read_bytes()


def _side_by_side(stock: Frames, scope: Frames, scale: int) -> np.ndarray:
    """One picture [h, w, 3] uint8 of even size, which yuv420p needs."""
    difference = np.clip(0.5 + _DIFFERENCE_GAIN * (scope - stock), 0.0, 1.0)
    captions = ("stock", "SCOPE", f"difference x{_DIFFERENCE_GAIN}")
    panels = [_panel(image, scale, text) for image, text in zip((stock, scope, difference), captions, strict=True)]
    gap = np.full((panels[0].shape[0], _GAP, 3), _DARK, dtype=np.uint8)
    picture = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    height, width = (size // 2 * 2 for size in picture.shape[:2])
    return np.ascontiguousarray(picture[:height, :width])


def _panel(image: Frames, scale: int, caption: str) -> np.ndarray:
    """An enlarged image [h, w, 3] uint8 under its caption."""
    pixels = as_pixels(image)
    # Nearest neighbour: an interpolated enlargement would hide the very differences that the clip is there to show.
    pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    header = np.full((_CAPTION_HEIGHT, pixels.shape[1], 3), _DARK, dtype=np.uint8)
    cv2.putText(header, caption, (6, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (235, 235, 235), 1, cv2.LINE_AA)
    return np.concatenate([header, pixels])
