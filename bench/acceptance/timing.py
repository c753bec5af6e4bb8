"""Seconds of what runs on a GPU, and the sides that take turns at them."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from dipengine.bench.turns import Side, seconds, spread_of

ROUNDS = 5
LEAST = 0.4  # seconds of a round
MOST = 2000  # iterations of a round


def prepare() -> None:
    """PyTorch as its fastest users set it: tf32 for float32 products, cuDNN choosing by trial."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def measured(side: Side, rounds: int = ROUNDS, least: float = LEAST) -> dict[str, Any]:
    """Seconds an iteration of a side, whose run(n) returns when the device is done: median, quartiles, samples."""
    side.run(2)
    each = seconds(side, 3)
    count = min(MOST, max(2, math.ceil(least / max(each, 1e-9))))
    return spread_of([seconds(side, count) for _ in range(rounds)]) | {"iterations_a_round": count}


def graph_seconds(call: Callable[[], None], device: str, rounds: int = ROUNDS, least: float = 0.02) -> dict[str, Any]:
    """Seconds of what `call` gives the device: captured as a CUDA graph and replayed, so that starting it does not count.

    "captured" is False where it cannot be captured, or there is no GPU: calls one behind the other then, starting included.
    """
    call()
    synchronise(device)
    replay, copies = _captured(call) if device.startswith("cuda") else (call, 1)
    replay()
    synchronise(device)

    def some(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            replay()
        synchronise(device)
        return (time.perf_counter() - start) / (n * copies)

    count = min(MOST, max(2, math.ceil(least / max(some(2) * copies, 1e-9))))
    return spread_of([some(count) for _ in range(rounds)]) | {"captured": copies > 1}


COPIES = 8  # of a call in a graph, so that starting the graph counts for an eighth


def _captured(call: Callable[[], None]) -> tuple[Callable[[], None], int]:
    """What does the call so many times."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(COPIES):
                call()
    except RuntimeError as error:
        print(f"not captured: {error}", flush=True)
        torch.cuda.synchronize()
        return call, 1
    return graph.replay, COPIES


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def free_memory(device: str) -> None:
    """What nobody holds any more goes back to the device."""
    if "torch._dynamo" in sys.modules:  # what torch.compile keeps
        torch.compiler.reset()
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.init()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def held(device: str) -> int | None:
    """Bytes of the device that are taken, by whomever."""
    if not device.startswith("cuda"):
        return None
    free, total = torch.cuda.mem_get_info()
    return total - free
