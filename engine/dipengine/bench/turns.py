"""Sides that take turns in one run, and what the samples say: medians, quartiles, ratios round by round.

A turn begins with a pause, in which the other side's idle workers fall asleep (PyTorch's OpenMP workers spin for a while
after each operation and would take a core from whoever is next), and with one untimed iteration, which fetches the data
and wakes the side's own. Sides begin each round one place later, so that none always follows the same other.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

PAUSE = 0.02  # seconds, until the other side's idle workers sleep
LEAST = 0.25  # seconds of timed iterations in a turn, so that short ones are not measured by single ones
MOST = 200  # iterations in a turn
DISTURBED = 1.5  # times a side's median: a round slower than that had the machine not to itself


class Side(Protocol):
    """One implementation that is measured."""

    def run(self, n: int) -> None:
        """Do n whole iterations."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles (linear between samples; of a single sample, itself)."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: list[float]) -> Spread:
        if len(samples) < 2:
            return cls(samples[0], samples[0], samples[0])
        lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, lower, upper)


def take_turns(sides: Mapping[str, Side], rounds: int, say: Callable[[str], None] = lambda text: None) -> dict[str, list[float]]:
    """Seconds an iteration, one sample a round, by side. Each side has run before (its first iteration builds things)."""
    counts = {name: _iterations(seconds(side, 1)) for name, side in sides.items()}
    samples: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for i in range(rounds):
        say(f"round {i + 1} of {rounds}")
        first = i % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE)
            sides[name].run(1)
            samples[name].append(seconds(sides[name], counts[name]))
    return samples


def ratios(samples: list[float], ours: list[float]) -> list[float]:
    """How many times longer the first takes, round by round."""
    return [theirs / own for theirs, own in zip(samples, ours, strict=True)]


def disturbed_rounds(samples: Mapping[str, list[float]]) -> list[int]:
    """Rounds, from 1, in which some side took far longer than at its median: what two looks at the machine may miss."""
    slow = {i + 1 for taken in samples.values() for i, t in enumerate(taken) if t > DISTURBED * Spread.of(taken).median}
    return sorted(slow)


def seconds(side: Side, n: int) -> float:
    """Seconds an iteration, over n of them."""
    start = time.perf_counter()
    side.run(n)
    return (time.perf_counter() - start) / n


def spread_of(samples: list[float]) -> dict[str, Any]:
    """Median, quartiles and the samples themselves (JSON-able)."""
    spread = Spread.of(samples)
    return {"median": spread.median, "lower_quartile": spread.lower, "upper_quartile": spread.upper, "samples": samples}


def _iterations(expected: float) -> int:
    return min(MOST, max(1, math.ceil(LEAST / max(expected, 1e-9))))
