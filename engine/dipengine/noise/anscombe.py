"""The generalised Anscombe transform of a counting sensor, and its exact unbiased inverse.

    f(k) = 2 sqrt(max(0, k + 3/8 + r^2)),    k = electrons measured, r = read noise in electrons

turns Poisson-Gaussian noise into noise of variance 1 (nearly: less below some 3 electrons, `variance` says how much).
What is fitted in this scale converges on M(e) = E[f(k) | e], so that the way back is the inverse of M and not that of f,
which would bias dark pixels: M. Makitalo, A. Foi, "Optimal inversion of the generalized Anscombe transformation for
Poisson-Gaussian noise", IEEE TIP 2013 (and "Optimal inversion of the Anscombe transformation ...", IEEE TIP 2011).

M is computed, not approximated: a sum over photon counts of an integral over the read noise, up to 200 electrons;
beyond, e = M^2/4 - 1/8 - r^2 + O(1/M^2), continued from the table's end. Where no light could have led (M below M(0),
a sky whose level was subtracted too far) the read noise alone continues M, so that means are kept there too. The table
is made with matrix products, whose last bits differ between machines: exported files hold it (`inverse_table`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from dipengine.images.namespaces import interpolated, namespace
from dipengine.noise.inverse_table import InverseTable
from dipengine.noise.sensor import Sensor

_TABLE_END = 200.0  # electrons
_POSITIVE, _NEGATIVE = 1024, 256  # rows of the table on each side of 0 electrons
_NORMAL_REACH, _NORMAL_STEPS = 8.0, 1600  # of the integral over the read noise: standard deviations, midpoints


@dataclass(frozen=True)
class Anscombe:
    """A `Curve` (images.values): data values to stabilised ones of unit noise, and back without bias."""

    sensor: Sensor
    stored: InverseTable | None = field(default=None, compare=False)  # read from a file

    def forward(self, data: Any) -> Any:
        """f of data values, float64 of the same shape."""
        if isinstance(data, np.ndarray) or np.isscalar(data):
            data = np.asarray(data, np.float64)
        return self._stabilise(self.sensor.electrons(data))

    def inverse(self, stabilised: Any) -> Any:
        """Data values whose mean stabilised value is the given one, float64 of the same shape."""
        return self.sensor.data(self.inverse_table.electrons(stabilised))

    @cached_property
    def inverse_table(self) -> InverseTable:
        """The inverse for exported files: `stored`, or as this machine's library computes it."""
        if self.stored is not None:
            return self.stored
        electrons, means, _ = self._table
        means = np.maximum.accumulate(means)  # where neighbours differ by less than rounding
        return InverseTable(means, electrons - means**2 / 4, self._limit)

    def expected(self, electrons: Any) -> Any:
        """M(e) = E[f | e] for 0 <= e <= 200 electrons."""
        return np.interp(electrons, self._table[0], self._table[1])

    def variance(self, electrons: Any) -> Any:
        """Var[f | e], which is 1 but for a few electrons; e in electrons, values below 0 count as 0."""
        rows, _, variances = self._table
        light = rows >= 0
        return interpolated(electrons, rows[light], variances[light])

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "anscombe", **self.sensor.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Anscombe":
        """The curve that `to_dict` described. Raises ValueError for another kind."""
        settings = dict(values)
        if settings.pop("kind", None) != "anscombe":
            raise ValueError(f"unknown curve {values.get('kind')!r}")
        return cls(Sensor(**settings))

    def with_inverse(self, record: dict[str, Any]) -> "Anscombe":
        """The same curve, which goes back by the table of a file. Raises as `InverseTable.from_dict`."""
        return replace(self, stored=InverseTable.from_dict(record, self._limit))

    @property
    def _limit(self) -> float:
        return -1 / 8 - self._read_variance

    @property
    def _read_variance(self) -> float:
        return self.sensor.read_electrons * self.sensor.read_electrons  # not **, which a library may round otherwise

    def _stabilise(self, k: Any) -> Any:
        xp = namespace(k)
        return 2 * xp.sqrt(xp.clip(k + 3 / 8 + self._read_variance, 0, None))

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Electrons (ascending, from where the transform reaches 0), M and variance there."""
        dark = np.linspace(-3 / 8 - self._read_variance, 0, _NEGATIVE, endpoint=False)
        light = np.linspace(0, np.sqrt(_TABLE_END), _POSITIVE) ** 2
        counts = np.arange(int(_TABLE_END + 12 * np.sqrt(_TABLE_END)) + 20)
        log_factorial = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
        with np.errstate(divide="ignore", invalid="ignore"):
            log_rate = np.log(light)[:, None] * counts
        log_rate[0] = np.where(counts == 0, 0.0, -np.inf)  # 0^0 = 1
        chances = np.exp(log_rate - light[:, None] - log_factorial)
        moments = [np.concatenate([m[: len(dark)], chances @ m[len(dark) :]]) for m in self._moments(dark, counts)]
        return np.concatenate([dark, light]), moments[0], moments[1] - moments[0] ** 2

    def _moments(self, *parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """E[f] and E[f^2] over the read noise, at each given number of electrons."""
        k = np.concatenate(parts).astype(np.float64)
        r = self.sensor.read_electrons
        if r == 0:
            return self._stabilise(k), self._stabilise(k) ** 2
        step = 2 * _NORMAL_REACH / _NORMAL_STEPS
        n = -_NORMAL_REACH + step * (np.arange(_NORMAL_STEPS) + 0.5)
        weights = np.exp(-(n**2) / 2)
        weights /= weights.sum()
        values = self._stabilise(k[:, None] + r * n)
        return values @ weights, values**2 @ weights
