"""The exact unbiased inverse of the Anscombe transform as a table: kept in exported files, looked up alike everywhere.

Of M(e), electrons e that a stabilised value d = M stands for (`anscombe`):

    d' = max(d, means[0])
    d' < means[n-1]:  rest = rests[i] + (d' - means[i]) * slopes[i],    i the last with means[i] <= d',
                      slopes[i] = (rests[i+1] - rests[i]) / (means[i+1] - means[i])
    else:             rest = limit + (rests[n-1] - limit) * s^2,        s = means[n-1] / d'
    e = d' * d' / 4 + rest

in float64, each step rounded by itself: csrc/rendering/value_map.cpp takes the same steps, so that both paint the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dipengine.images.namespaces import last_below, looked_up, namespace

MOST_ROWS = 1 << 16  # that are read; 1280 are written


@dataclass(frozen=True, eq=False)
class InverseTable:
    """means: stabilised values of at least 0, not falling, the last above the first; rests: e - M^2/4 there, which hardly varies,
    so that interpolating it is as good as exact.

    Both float64 [n], n from 2 to 65536. limit: of the rest for many electrons. Raises ValueError for numbers that are no table.
    """

    means: np.ndarray
    rests: np.ndarray
    limit: float

    def __post_init__(self) -> None:
        if not 2 <= len(self.means) == len(self.rests) <= MOST_ROWS:
            raise ValueError(f"its inverse has {len(self.means)} means and {len(self.rests)} rests")
        if not (np.isfinite(self.means).all() and np.isfinite(self.rests).all()):
            raise ValueError("its inverse is not finite")
        if self.means[0] < 0 or self.means[-1] <= self.means[0] or (self.means[1:] < self.means[:-1]).any():
            raise ValueError("the means of its inverse do not rise")

    @cached_property
    def _slopes(self) -> np.ndarray:
        with np.errstate(all="ignore"):  # between equal means, where no value falls
            return (self.rests[1:] - self.rests[:-1]) / (self.means[1:] - self.means[:-1])

    def electrons(self, stabilised: Any) -> Any:
        """Electrons whose mean stabilised value is the given one, float64 of the same shape; those of means[0] below it."""
        if isinstance(stabilised, np.ndarray) or np.isscalar(stabilised):
            stabilised = np.asarray(stabilised, np.float64)
        xp, end, last = namespace(stabilised), float(self.means[-1]), float(self.rests[-1])
        d = xp.clip(stabilised, float(self.means[0]), None)
        mean, i = last_below(d, self.means)
        within = looked_up(i, self.rests) + (d - mean) * looked_up(i, self._slopes)
        s = end / xp.clip(d, end, None)
        return d * d / 4 + xp.where(d < end, within, self.limit + (last - self.limit) * (s * s))

    def to_dict(self) -> dict[str, list[float]]:
        """The table for files (JSON-able): decimal numbers that are read as the same float64."""
        return {"means": self.means.tolist(), "rests": self.rests.tolist()}

    @classmethod
    def from_dict(cls, record: dict[str, Any], limit: float) -> "InverseTable":
        """The table that `to_dict` wrote. Raises ValueError, TypeError or KeyError for anything else."""
        return cls(_numbers(record["means"]), _numbers(record["rests"]), limit)


def _numbers(values: Any) -> np.ndarray:
    if not isinstance(values, list) or any(type(value) not in (int, float) for value in values):
        raise ValueError("its inverse holds something else than numbers")
    try:
        return np.array([float(value) for value in values])
    except OverflowError:
        return np.array([math.inf])
