"""Part "profile": where an iteration of ours goes: microseconds and launches by kernel, and how long the GPU had nothing to do between
them. As PyTorch's profiler records them, replayed from the graph as in every other run."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from acceptance import gpu
from acceptance.iterations import DEVICE, SIZES, setting_of
from acceptance.step import FAILED, MEASURED, Context, Step

ITERATIONS = 20
MEASURED_SIZES = ("256", "1024")

Event = tuple[str, float, float]  # name; begin and end in microseconds


def short(name: str) -> str:
    """`conv_forward<Bfloat16, ConvTile<2, 2, 4, 4>>` of a kernel's name with its namespaces, arguments and types of numbers."""
    name = re.sub(r"\(anonymous namespace\)::|(?:\w+::)+|\((?:int|bool|unsigned)\)|^void ", "", name)
    name = name.replace("_kernel", "", 1)
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:i].strip()
    return name.strip()


def summary(events: Iterable[Event], iterations: int) -> dict[str, Any]:
    """By kernel, the most time first, of one iteration; the sequence of the last one with the gap in front of each launch."""
    ordered = sorted(events, key=lambda event: event[1])
    launches, seconds = defaultdict(int), defaultdict(float)
    for name, begin, end in ordered:
        launches[short(name)] += 1
        seconds[short(name)] += end - begin
    rows = [{"kernel": name, "launches": launches[name] / iterations, "us": round(total / iterations, 3)}
            for name, total in sorted(seconds.items(), key=lambda item: -item[1])]
    span = ordered[-1][2] - ordered[0][1] if ordered else 0.0
    each = len(ordered) // iterations
    last = ordered[-each:] if each else []
    behind = [before[2] for before in ordered[-each - 1 : -1]] if each else []
    behind = [last[0][1]] * (len(last) - len(behind)) + behind  # nothing is known of what stood before the very first
    return {
        "kernels": rows, "launches": len(ordered) / iterations, "busy_us": round(sum(seconds.values()) / iterations, 2),
        "us": round(span / iterations, 2),
        "sequence": [[short(name), round(end - begin, 2), round(begin - before, 2)]
                     for (name, begin, end), before in zip(last, behind, strict=True)],
    }


def recorded(side: Any, iterations: int) -> list[Event]:
    """What the GPU did in so many iterations."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        side.run(iterations)
    return [(event.name, event.time_range.start, event.time_range.end) for event in profiled.events()
            if event.device_type == DeviceType.CUDA and not event.name.startswith(("Mem", "ProfilerStep"))]


def at(context: Context, size: str) -> dict[str, Any]:
    from acceptance import timing
    from dipengine.bench.ours import make_ours

    timing.free_memory(DEVICE)
    side = make_ours(setting_of(*SIZES[size], DEVICE))
    side.run(40)  # warm, with some snapshots behind
    events = recorded(side, ITERATIONS)
    if not events:
        return {"status": FAILED, "reason": "the profiler saw no kernel"}
    return {"status": MEASURED, **summary(events, ITERATIONS), "clocks": gpu.clocks()}


STEPS = [Step(size, lambda context, size=size: at(context, size), 15, 90) for size in MEASURED_SIZES]
