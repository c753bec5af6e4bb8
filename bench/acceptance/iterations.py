"""Part "iterations": a whole iteration of the paper's network at each size, ours and plain PyTorch's, with the memory that each takes.

A peer is measured between two measurements of ours in the same process, each with the GPU's memory to itself; "ratio" is its time over
the mean of theirs. 3888 x 3968 pixels (15.4 Mpx) are a canvas of 3904 x 3968, at which both sides are measured.
"""

from __future__ import annotations

from typing import Any

from acceptance import gpu
from acceptance.step import MEASURED, Context, Step, without_overlap

DEVICE = "cuda:0"
SIZES = {"256": (256, 256), "512": (512, 512), "1024": (1024, 1024), "4096": (4096, 4096), "15.4Mpx": (3904, 3968)}
SMALL = ("256", "512")  # where the time between launches counts
PEERS = {"eager": "eager tf32", "graph": "bf16 channels_last, graph", "compiled": "bf16 channels_last, max-autotune, graph"}


def setting_of(height: int, width: int, device: str, precision: str = "bf16", **network: Any):
    from dipengine.bench.setting import Setting
    from dipengine.generators.architecture import Hourglass

    return Setting(Hourglass.regular(upsample="nearest", **network), height, width, precision, threads=2, device=device)


def measure_ours(setting: Any, **how: Any) -> dict[str, Any]:
    """Seconds and bytes. "arena_bytes" is what the fit said it would take, "memory_bytes" what is gone from the GPU's memory."""
    from acceptance import timing
    from dipengine.bench.ours import make_ours

    timing.free_memory(setting.device)
    make_ours(setting_of(64, 64, setting.device)).run(1)  # the kernels' code is on the device then
    before = timing.held(setting.device)
    side = make_ours(setting)
    found = {"seconds": timing.measured(side, **how), "arena_bytes": side.memory_bytes}
    if before is not None:
        found["memory_bytes"] = timing.held(setting.device) - before
    return found


def measure_peer(setting: Any, name: str, groups: int = 1, **how: Any) -> dict[str, Any]:
    """Seconds, the most bytes that PyTorch's allocator had of the device, and the seconds to the first iteration's end."""
    import time

    import torch

    from acceptance import timing
    from dipengine.bench.peers import CUDA_CONFIGURATIONS, PyTorchFit

    timing.prepare()
    timing.free_memory(setting.device)
    start = time.perf_counter()
    side = PyTorchFit(CUDA_CONFIGURATIONS[name], setting, groups)
    side.run(1)
    found: dict[str, Any] = {"seconds_to_first": time.perf_counter() - start, "seconds": timing.measured(side, **how)}
    if setting.device.startswith("cuda"):
        found["memory_bytes"] = torch.cuda.max_memory_reserved()
    return found


def ours(context: Context, height: int, width: int) -> dict[str, Any]:
    return {"status": MEASURED, **measure_ours(setting_of(height, width, DEVICE)), "pixels": height * width, "clocks": gpu.clocks()}


def peer(context: Context, name: str, height: int, width: int) -> dict[str, Any]:
    setting = setting_of(height, width, DEVICE)
    return {"status": MEASURED, **beside(lambda: measure_ours(setting, rounds=3), lambda: measure_peer(setting, name)), "peer": name,
            "pixels": height * width, "clocks": gpu.clocks()}


def apart(context: Context, height: int, width: int) -> dict[str, Any]:
    """What it is worth that launches overlap: ours without, beside ours."""
    setting = setting_of(height, width, DEVICE)

    def waiting() -> dict[str, Any]:
        with without_overlap():
            return measure_ours(setting, rounds=3)

    return {"status": MEASURED, **beside(lambda: measure_ours(setting, rounds=3), waiting), "peer": "ours, no launch before another's end",
            "pixels": height * width, "clocks": gpu.clocks()}


def beside(ours: Any, peer: Any) -> dict[str, Any]:
    """A peer's measurement with "ours", the medians before and behind it that could be had, and the "ratio" to their mean."""
    medians = [_median(ours)]
    found = peer()
    if medians[0] is not None:
        medians.append(_median(ours))
    had = [median for median in medians if median is not None]
    return found | {"ours": had, "ratio": found["seconds"]["median"] / (sum(had) / len(had)) if had else None}


def _median(measure: Any) -> float | None:
    try:
        return measure()["seconds"]["median"]
    except Exception as error:  # its own step says so
        print(f"ours beside the peer: {type(error).__name__}: {error}", flush=True)
        return None


def _steps() -> list[Step]:
    found, compiled = [], []
    for size, (height, width) in SIZES.items():
        found.append(Step(f"{size}-ours", lambda context, h=height, w=width: ours(context, h, w), 10, 60 if height < 2000 else 100))
        if size in SMALL:
            found.append(Step(f"{size}-apart", lambda context, h=height, w=width: apart(context, h, w), 10, 60, peer=True))
        for short, name in PEERS.items():
            step = Step(f"{size}-{short}", lambda context, n=name, h=height, w=width: peer(context, n, h, w),
                        150 if short == "compiled" else 15, 500 if short == "compiled" else 150, peer=True)
            (compiled if short == "compiled" else found).append(step)
    return [*found, *compiled]  # whose compilers take minutes


STEPS = _steps()
