"""A worker that serves one accelerated pipeline over HTTP: FastAPI, one generation at a time, metrics for Prometheus.

    pip install 'scope-calibrate[serving]'
    python examples/fastapi_worker.py /models/SkyReels-V2 profiles/my-skyreels.json --wait 30
    curl -H 'Content-Type: application/json' -d '{"prompt": "a fox"}' localhost:8000/generate -o fox.mp4
    curl localhost:8000/metrics

A pipeline holds the state of one generation, so a second request waits for at most ``--wait`` seconds, and is then told
with 503 to come again. A request whose settings are not the calibrated ones runs exact: the answer says so in the
header `X-Scope-Mismatch`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from diffusers import DiffusionPipeline
from diffusers.utils import encode_video
from fastapi import FastAPI, HTTPException, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from scope_runtime import Profile, ScopeError, ScopeWarning, apply_scope

SETTINGS = (
    "height", "width", "num_frames", "num_inference_steps", "guidance_scale", "ar_step", "causal_block_size",
)  # fmt: skip
"""Settings of a profile that SkyReels-V2 takes as arguments of the same names."""

_RETRY_SECONDS = 5


class Order(BaseModel):
    """What a client asks for; `call` takes the place of some of the worker's own arguments."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=10_000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    call: dict[str, int | float] = {}


class Worker:
    """One pipeline, its profile and its counts."""

    def __init__(self, pipe: Any, profile: Profile, call: dict[str, Any], fps: int, wait: float) -> None:
        """Attaches the profile, which refuses another model than the calibrated one.

        Args:
            pipe: A pipeline of diffusers.
            profile: Its profile.
            call: Arguments of every call beside the prompt and the calibrated settings.
            fps: Frames per second of the clips.
            wait: Seconds that a request waits for the one before it.
        """
        self.pipe, self.fps, self.wait = pipe, fps, wait
        self.call = {name: getattr(profile.settings, name) for name in SETTINGS} | call
        self.scope = apply_scope(pipe, profile)
        self.registry = CollectorRegistry()
        self.generations = Counter("scope_generations", "Generations, by how they ran", ["ran"], registry=self.registry)
        self.refused = Counter("scope_refused", "Requests that were refused", ["reason"], registry=self.registry)
        self.evaluations = Counter("scope_block_evaluations", "Block evaluations", ["of"], registry=self.registry)
        self.seconds = Histogram(
            "scope_generation_seconds", "Wall clock of a generation with decoding", registry=self.registry,
            buckets=(1, 3, 10, 30, 100, 300, 1000),
        )  # fmt: skip
        self._one = threading.Semaphore()

    def generate(self, order: Order) -> tuple[bytes, dict[str, str]]:
        """An mp4, and the headers that say how it was made.

        Raises:
            HTTPException: 503 where another generation does not end in time, 422 where the order cannot be run.
        """
        if unknown := order.call.keys() - self.call.keys():
            raise self._refuse(422, "invalid", f"call.{min(unknown)} is not known here: {', '.join(self.call)}")
        generator = torch.Generator().manual_seed(order.seed)
        with self._alone():
            started = time.perf_counter()
            # One at a time, so what is warned of meanwhile is of this generation.
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always", ScopeWarning)
                try:
                    frames = self.pipe(order.prompt, generator=generator, **self.call | order.call).frames[0]
                except (ScopeError, ValueError) as error:  # of a call that the pipeline or the runtime does not take
                    raise self._refuse(422, "invalid", str(error)) from error
            self.seconds.observe(time.perf_counter() - started)
            report = self.scope.report
        told = [str(warning.message) for warning in heard if issubclass(warning.category, ScopeWarning)]
        self.generations.labels("exact" if told else "calibrated").inc()
        self.evaluations.labels("made").inc(report.evaluations)
        self.evaluations.labels("stock").inc(report.stock_evaluations)
        headers = {"X-Scope-Speedup": f"{report.speedup_evaluations:.2f}"}
        if told:
            headers["X-Scope-Mismatch"] = _header(told[0])
        return _clip(frames, self.fps), headers

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._one.acquire(timeout=self.wait):
            raise self._refuse(503, "busy", "another generation is running: try again later", _RETRY_SECONDS)
        try:
            yield
        finally:
            self._one.release()

    def _refuse(self, status: int, reason: str, told: str, retry: int | None = None) -> HTTPException:
        self.refused.labels(reason).inc()
        return HTTPException(status, told, None if retry is None else {"Retry-After": str(retry)})


def _header(text: str) -> str:
    """Text as the value of a header: one line of ASCII."""
    return " ".join(text.encode("ascii", "backslashreplace").decode().split())[:1000]


def _clip(frames: Any, fps: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        encode_video(frames, fps, str(path))
        return path.read_bytes()


def make_app(worker: Worker) -> FastAPI:
    """The HTTP side of a worker."""
    app = FastAPI(title="scope worker")

    # No coroutines: FastAPI runs these in threads, so that metrics are answered while a generation runs.
    @app.post("/generate")
    def generate(order: Order) -> Response:
        content, headers = worker.generate(order)
        return Response(content, media_type="video/mp4", headers=headers)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(worker.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def main() -> None:
    """Loads a pipeline and serves it until it is stopped."""
    parser = argparse.ArgumentParser(description="Serve an accelerated SkyReels-V2 pipeline over HTTP.")
    parser.add_argument("model", help="a diffusers folder")
    parser.add_argument("profile", help="profile.json or hf://owner/name/profile.json")
    parser.add_argument("--call", type=json.loads, default={}, metavar="JSON", help="further arguments of every call")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--fps", type=int, default=24)
    parser.add_argument("--wait", type=float, default=0.0, help="seconds that a request waits for the one before it")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    pipe = DiffusionPipeline.from_pretrained(given.model, dtype=getattr(torch, given.dtype)).to(given.device)
    worker = Worker(pipe, Profile.load(given.profile), given.call, given.fps, given.wait)
    uvicorn.run(make_app(worker), host="127.0.0.1", port=given.port)


if __name__ == "__main__":
    main()
