"""A counting sensor: what turns photons into the numbers of an image file.

    data = offset + (Poisson(e) + Normal(0, (gain * read_noise)^2)) / gain,    e = gain * (clean - offset) >= 0

so that a pixel of clean value v has variance (v - offset) / gain + read_noise^2 in data units.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from dipengine.errors import InputError


@dataclass(frozen=True)
class Sensor:
    """gain: electrons per data unit, above 0. offset: data value of no light (black level). read_noise: standard
    deviation in data units of the noise that is there without light; 0 leaves pure photon (Poisson) noise.

    Raises InputError for values that no sensor has.
    """

    gain: float
    offset: float = 0.0
    read_noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.gain < math.inf:
            raise InputError(f"gain is {self.gain:g}; give the electrons per data unit, above 0 (1 where the values are counts).")
        if not math.isfinite(self.offset):
            raise InputError(f"offset is {self.offset:g}; give the black level in data units, a finite number.")
        if not 0 <= self.read_noise < math.inf:
            raise InputError(f"read-noise is {self.read_noise:g}; give its standard deviation in data units, at least 0.")
        if not math.isfinite(self.read_electrons * self.read_electrons):
            raise InputError(
                f"read-noise {self.read_noise:g} at gain {self.gain:g} is more electrons than can be counted; give it in data units."
            )

    @property
    def read_electrons(self) -> float:
        """Standard deviation of the read noise in electrons."""
        return self.gain * self.read_noise

    def electrons(self, data: Any) -> Any:
        """Data values as electrons (negative where read noise took them below the black level)."""
        return (data - self.offset) * self.gain

    def data(self, electrons: Any) -> Any:
        """Electrons as data values."""
        return electrons / self.gain + self.offset

    def to_dict(self) -> dict[str, float]:
        return asdict(self)
