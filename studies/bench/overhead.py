"""How much of the time saved reaches the clock.

The ideal generation spends, in its transformer calls, the time that the stock transformer takes for as many blocks as
were evaluated, and nothing else; the real one also attends to captured context, decides, predicts and assembles. The
ratio of the two speed-ups over stock is the ratio of these seconds, in which stock's own cancel. What the pipeline does
between its transformer calls is the same in all three and is left out: it would only dilute the overhead.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import SkyReelsV2Transformer3DModel

from scope_runtime import GapWeights, Policy, Settings, run_policy
from scope_runtime.adapters.skyreels_v2 import SkyReelsV2Attachment
from studies.bench.timing import interleaved
from studies.reference import models

POLICY = Policy(warmup=2, max_skip=4)
PROMPT = "a red circle moving left on a striped background"
DEEP_LAYERS = 24
DEEP_STEPS = 12


def measure(repeats: int) -> dict[str, float]:
    """The figures of ``python -m studies.bench overhead``.

    Returns:
        Ratios to the ideal speed-up (``_learned``: of the same rows as a plan with weights per gap), what a skipped row
        costs, and the CPU time of the look before a generation.
    """
    pipe = models.load_pipeline()
    reference = _compare(pipe, models.CALL, POLICY, repeats)
    reference_learned = _compare(pipe, models.CALL, _learned(pipe, models.CALL), repeats)
    config = {**pipe.transformer.config, "num_layers": DEEP_LAYERS}
    torch.manual_seed(0)
    pipe.transformer = SkyReelsV2Transformer3DModel.from_config(config).eval()
    call = models.CALL | {"num_inference_steps": DEEP_STEPS, "ar_step": 2}
    deep = _compare(pipe, call, POLICY, repeats)
    deep_learned = _compare(pipe, call, _learned(pipe, call), repeats)
    return {
        "reference_ratio": reference["ratio"],
        "reference_ratio_learned": reference_learned["ratio"],
        "deep_ratio": deep["ratio"],
        "deep_ratio_learned": deep_learned["ratio"],
        "skipped_row_ms": reference["skipped_row_ms"],
        "skipped_row_ms_learned": reference_learned["skipped_row_ms"],
        "reference_look_cpu_ms": reference["look_cpu_ms"],
        "deep_look_cpu_ms": deep["look_cpu_ms"],
    }


@torch.no_grad()
def _generate(pipe: Any, call: dict[str, Any]) -> None:
    pipe(PROMPT, output_type="latent", generator=torch.Generator().manual_seed(0), **call)


def _learned(pipe: Any, call: dict[str, Any]) -> Policy:
    """The rows of `POLICY` with weights of some value for every gap: what they cost does not depend on it."""
    with run_policy(pipe, POLICY) as scope:
        _generate(pipe, call)
    plan = tuple(row.replace("K", ".") for row in scope.report.modes)
    table = {
        (0, step, branch): (1.5, -0.75, 0.25)
        for step in range(call["num_inference_steps"])
        for branch in ("cond", "uncond")
    }
    weights = GapWeights.fitted(plan, Settings.of(pipe, **call), depth=3, classes=(0,), weights=table)
    return Policy(plan=plan, gap_weights=weights)


@torch.no_grad()
def _compare(pipe: Any, call: dict[str, Any], policy: Policy, repeats: int) -> dict[str, float]:
    rows: list[float] = []

    def skip() -> list[str]:
        with run_policy(pipe, policy) as scope, _timed_rows(scope._attachment, rows):
            _generate(pipe, call)
        return scope.report.modes

    modes = skip()
    sizes = [sum(letter in "RK" for letter in row) for row in modes]
    guided = 2 if call["guidance_scale"] > 1 else 1
    forward = _stock_forward(pipe, call)

    def evaluate(counts: list[int]) -> Callable[[], None]:
        def run() -> None:
            for count in counts:
                for _ in range(guided if count else 0):
                    forward(count)

        return run

    attachment = SkyReelsV2Attachment(pipe, lambda *_: (None, ""), check=lambda pipe: None)
    look = _cpu_seconds(attachment.look)
    attachment.detach()
    rows.clear()
    seconds = interleaved({"scope": skip, "evaluated blocks": evaluate(sizes)}, repeats, warm_up=0)
    runs = [rows[i : i + len(sizes)] for i in range(0, len(rows), len(sizes))]
    return {
        "look_cpu_ms": 1000 * look,
        "ratio": seconds["evaluated blocks"] / statistics.median(map(sum, runs)),
        "skipped_row_ms": 1000 * statistics.median(run[i] for run in runs for i, size in enumerate(sizes) if size == 0),
    }


def _cpu_seconds(run: Callable[[], None], repeats: int = 20) -> float:
    """Median CPU time of something that computes on one thread, whatever else the machine does."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def _stock_forward(pipe: Any, call: dict[str, Any]) -> Callable[[int], Any]:
    """Runs the stock transformer on a number of blocks of noise."""
    frames = call["causal_block_size"]
    size = call["height"] // pipe.vae_scale_factor_spatial
    pipe.transformer._set_ar_attention(frames)
    text = torch.randn(1, call["max_sequence_length"], pipe.transformer.config.text_dim)

    def forward(blocks: int) -> Any:
        return pipe.transformer(
            hidden_states=torch.randn(1, pipe.transformer.config.in_channels, blocks * frames, size, size),
            timestep=torch.full((1, blocks * frames), 500),
            encoder_hidden_states=text,
            enable_diffusion_forcing=True,
            return_dict=False,
        )

    return forward


class _timed_rows:  # noqa: N801 - reads as the context manager that it is
    """Adds up what the runtime spends on each row, over its guidance branches."""

    def __init__(self, attachment: Any, rows: list[float]) -> None:
        self.attachment, self.rows = attachment, rows

    def __enter__(self) -> None:
        answer, rows = self.attachment.answer, self.rows

        def timed(branch: str, *args: Any) -> Any:
            start = time.perf_counter()
            result = answer(branch, *args)
            spent = time.perf_counter() - start
            if branch == "cond":
                rows.append(spent)
            else:
                rows[-1] += spent
            return result

        self.attachment.answer = timed

    def __exit__(self, *_: object) -> None:
        del self.attachment.answer
