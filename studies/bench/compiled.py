"""Compiled blocks: how many graphs the runtime's way of calling them takes, and whether any block runs uncompiled.

The stock pipeline and exact mode share the compiled blocks of one pipeline, as `compile_repeated_blocks` makes them
with its defaults. The graphs that exact mode adds must not grow with rows or layers: torch gives up after eight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from scope_runtime import exact
from studies.bench.timing import interleaved
from studies.reference import models

PROMPT = "a red circle moving left on a striped background"


class CountedGraphs:
    """A backend of torch.compile that counts the graphs it is given and the calls of what it made of them.

    Args:
        backend: What compiles a graph; `torch.compile` names the same things.
    """

    def __init__(self, backend: str) -> None:
        self.graphs = 0
        self.calls = 0
        self._compile = torch._dynamo.lookup_backend(backend)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        """Compiles a graph."""
        self.graphs += 1
        compiled = self._compile(graph, inputs)

        def counted(*arguments: Any) -> Any:
            self.calls += 1
            return compiled(*arguments)

        return counted


def measure(repeats: int, backend: str, **call: Any) -> dict[str, float | int]:
    """The figures of ``python -m studies.bench compiled`` on the reference pipeline.

    Args:
        repeats: Timed rounds, after one that compiles.
        backend: Of torch.compile; ``inductor`` needs a C++ compiler.
        **call: Changes of the pipeline call.

    Returns:
        Graphs of stock alone and of both, block calls and those that ran uncompiled, exact's speed-up over stock with
        compiled blocks, and the largest difference of its latents from the uncompiled stock pipeline's and from the
        compiled one's.
    """
    pipe = models.load_pipeline()
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    def latents(scope: AbstractContextManager[Any] | None = None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        with scope or contextlib.nullcontext():
            return pipe(PROMPT, output_type="latent", generator=generator, **models.CALL | call).frames

    uncompiled = latents()
    counted = CountedGraphs(backend)
    torch._dynamo.reset()
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=counted)
    handle = pipe.transformer.patch_embedding.register_forward_hook(count)
    stock = latents()
    graphs_stock = counted.graphs
    made = latents(exact(pipe))
    layers = len(pipe.transformer.blocks)
    block_calls, compiled_calls = passes * layers, counted.calls
    handle.remove()
    seconds = interleaved({"stock": latents, "exact": lambda: latents(exact(pipe))}, repeats, warm_up=0)
    return {
        "graphs_stock": graphs_stock,
        "graphs": counted.graphs,
        "block_calls": block_calls,
        "uncompiled_block_calls": block_calls - compiled_calls,
        "exact_speedup": seconds["stock"] / seconds["exact"],
        "exact_max_abs_diff": float((made - stock).abs().max()),
        "compiling_max_abs_diff": float((stock - uncompiled).abs().max()),
    }
