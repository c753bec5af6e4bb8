"""What the engine is to reach on a GPU, beside what was measured. A target whose measurement is missing is neither met nor missed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from acceptance.step import MEASURED

GPU = "NVIDIA H200"  # the one that the times and rates were set for
LEAST_OVER_EAGER, LEAST_OVER_BEST = 10.0, 3.0
Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Target:
    what: str
    unit: str
    wanted: float
    at_most: bool
    found: Callable[[Results], float | None]


def measured(results: Results, part: str, name: str) -> dict[str, Any] | None:
    result = results.get(part, {}).get(name)
    return result if result is not None and result["status"] == MEASURED else None


def _milliseconds(size: str) -> Callable[[Results], float | None]:
    def found(results: Results) -> float | None:
        ours = measured(results, "iterations", f"{size}-ours")
        return None if ours is None else 1000 * ours["seconds"]["median"]

    return found


def _gigabytes_a_mpx(size: str) -> Callable[[Results], float | None]:
    def found(results: Results) -> float | None:
        ours = measured(results, "iterations", f"{size}-ours")
        return None if ours is None or "memory_bytes" not in ours else ours["memory_bytes"] / ours["pixels"] / 1000

    return found


def _cohort(results: Results) -> float | None:
    ours = measured(results, "cohorts", "16-ours")
    return None if ours is None else ours["iterations_per_second"]


def over_eager(size: str) -> Callable[[Results], float | None]:
    def found(results: Results) -> float | None:
        eager = measured(results, "iterations", f"{size}-eager")
        return None if eager is None else eager["ratio"]

    return found


def over_best(size: str) -> Callable[[Results], float | None]:
    """Times ours that the fastest peer takes, once all of them have been tried."""

    def found(results: Results) -> float | None:
        names = (("iterations", "eager"), ("iterations", "graph"), ("compiled", "compiled"))
        if any(f"{size}-{side}" not in results.get(part, {}) for part, side in names):
            return None
        ran = [peer["ratio"] for part, side in names if (peer := measured(results, part, f"{size}-{side}")) and peer["ratio"] is not None]
        return min(ran, default=None)

    return found


def _roofline(results: Results) -> float | None:
    """The least share of its own that a layer of 128 channels reaches at 1024 x 1024."""
    found = measured(results, "layers", "1024")
    return None if found is None else min((row["of_roofline"] for row in found["rows"] if row["wide"]), default=None)


TARGETS = [
    Target("256x256, an iteration", "ms", 0.5, True, _milliseconds("256")),
    Target("512x512, an iteration", "ms", 1.2, True, _milliseconds("512")),
    Target("15.4 Mpx, an iteration", "ms", 60, True, _milliseconds("15.4Mpx")),
    Target("15.4 Mpx, memory", "GB a Mpx", 1.2, True, _gigabytes_a_mpx("15.4Mpx")),
    Target("cohort of 16 at 256x256", "iterations/s", 4000, False, _cohort),
    *(Target(f"{size}, eager tf32", "times ours", LEAST_OVER_EAGER, False, over_eager(size)) for size in ("256", "512", "15.4Mpx")),
    *(Target(f"{size}, best PyTorch", "times ours", LEAST_OVER_BEST, False, over_best(size)) for size in ("256", "512", "15.4Mpx")),
    Target("layers of 128 channels at 1024x1024, the least share of their roofline", "", 0.5, False, _roofline),
]


def judged(results: Results) -> list[dict[str, Any]]:
    """Every target with what was "measured" (None: not), and whether it is "met" (None: not known)."""
    rows = []
    for target in TARGETS:
        value = target.found(results)
        met = None if value is None else value <= target.wanted if target.at_most else value >= target.wanted
        rows.append({"what": target.what, "unit": target.unit, "wanted": target.wanted, "at_most": target.at_most, "measured": value,
                     "met": met})
    return rows
