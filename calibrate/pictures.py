"""What people look at: the comparison clip and the plot of the front. Both come as bytes, ready to be written."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from matplotlib.figure import Figure

from calibrate.quality import METRIC_VERSION, Frames, psnr_meaning
from calibrate.results import Result, front
from calibrate.study_file import Floors

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


def front_plot(results: Sequence[Result], picked: Result, floors: Floors, title: str) -> bytes:
    """A PNG of every measured policy, the front and the one that was picked; all of one metric version.

    Colours are from the Okabe-Ito palette, and no two kinds of point differ in colour alone.
    """
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    feasible = [result for result in results if result.feasible(floors)]
    groups = (
        ([r for r in results if r not in feasible], "x", "#999999", "below a floor"),
        (feasible, "o", "#0072B2", f"above the floors{floors.with_margin}"),
    )
    for points, marker, colour, label in groups:
        axes.scatter(*_xy(points), marker=marker, color=colour, s=36, label=f"{label} ({len(points)})", zorder=2)
    axes.plot(*_xy(front(feasible)), color="#0072B2", linewidth=1.2, zorder=1)
    axes.scatter(*_xy([picked]), marker="*", color="#D55E00", s=220, label=f"picked: trial {picked.trial}", zorder=3)
    if floors.psnr_db is not None:
        axes.axhline(
            floors.psnr_db, color="#000000", linewidth=0.8, linestyle="--", label=f"floor {floors.psnr_db:g} dB"
        )
    axes.set_xlabel("Speed-up (stock block evaluations / evaluations made)")
    meaning = "" if picked.metric_version == METRIC_VERSION else f",\n{psnr_meaning(picked.metric_version)}"
    axes.set_ylabel(f"Mean PSNR on search prompts (dB){meaning}")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _xy(results: Sequence[Result]) -> tuple[list[float], list[float]]:
    return [r.speedup_evaluations for r in results], [r.figures["psnr_db"] for r in results]


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


def _side_by_side(stock: Frames, scope: Frames, scale: int) -> np.ndarray:
    """One picture [h, w, 3] uint8 of even size, which yuv420p needs."""
    difference = np.clip(0.5 + _DIFFERENCE_GAIN * (scope - stock), 0.0, 1.0)
    captions = ("stock", "SCOPE", f"difference x{_DIFFERENCE_GAIN}")
    panels = [_panel(image, scale, text) for image, text in zip((stock, scope, difference), captions, strict=True)]
    gap = np.full((panels[0].shape[0], _GAP, 3), _DARK, dtype=np.uint8)
    picture = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    height, width = (size // 2 * 2 for size in picture.shape[:2])
    return np.ascontiguousarray(picture[:height, :width])


def as_pixels(image: Frames) -> np.ndarray:
    """From [0, 1] to uint8."""
    return np.round(image * 255).clip(0, 255).astype(np.uint8)


def _panel(image: Frames, scale: int, caption: str) -> np.ndarray:
    """An enlarged image [h, w, 3] uint8 under its caption."""
    pixels = as_pixels(image)
    # Nearest neighbour: an interpolated enlargement would hide the very differences that the clip is there to show.
    pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    header = np.full((_CAPTION_HEIGHT, pixels.shape[1], 3), _DARK, dtype=np.uint8)
    cv2.putText(header, caption, (6, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (235, 235, 235), 1, cv2.LINE_AA)
    return np.concatenate([header, pixels])
