"""The negative log-likelihood of a counting sensor as a data term.

Photon noise has the score (e - k) / e: the derivative of the Poisson negative log-likelihood e - k log e. With read noise
of r electrons the pair k + r^2, e + r^2 is Poisson to its first two moments (D. Snyder et al., "Image recovery from data
acquired with a CCD camera", JOSA A 1993), with the score

    s(e) = (e - k) / v(e),    v(e) = max(e, FLOOR) + r^2

which is unbiased for any k, negative ones too (quasi-likelihood: R. Wedderburn, Biometrika 1974). The floor keeps the
weight of a dark pixel finite and gives the integral of s a meaning below 0 electrons, where an offset that is not quite
right may lead. The loss is the deviance

    D(k, e) = 2 integral_k^e s(t) dt >= 0

per known pixel: for r = 0 and k, e above the floor, twice the Poisson negative log-likelihood over its minimum. It is about 1
where e is the clean image, and has the negative log-likelihood's gradient.

When the fit is down to the noise, the mean of x = (e - k)^2 / v(e) is down to 1. In a field of stars that mean is the sky's,
which is there long before the stars are. So the mean over the bright elements has to come down to 1 as well, each with the
share w = max(e, FLOOR)^3: no threshold says what is bright, in an even image it is the same mean again, and a pixel has its
share by the fit's own image, not by a count that may be an outlier. Few elements scatter: at the clean image that mean has
the standard deviation sqrt(2 sum w^2) / sum w (x as the square of a standard normal value), and two of them are forgiven.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dipengine.images import ValueMap
from dipengine.noise.sensor import Sensor

FLOOR = 0.1  # electrons


@dataclass(frozen=True)
class SensorLikelihood:
    """A `DataTerm` (tasks.base) for images in [0, 1] by `values`."""

    sensor: Sensor
    values: ValueMap

    def loss(self, image, target, mask=None, kernels="torch"):
        """Mean deviance over the known elements, a 0-dim tensor differentiable with respect to `image`.

        image, target: tensors [1, C, h, w] in [0, 1] by the value map; mask: [1, 1, h, w] of 0 and 1, None for all.
        kernels: as `kernels.deviance.deviance` takes them.
        """
        from dipengine.kernels.deviance import Electrons, deviance

        return deviance(image, target, mask, Electrons(*self.electrons(), FLOOR), kernels=kernels)

    def discrepancy(self, image, target, mask=None, kernels="torch") -> float:
        """Mean squared residual in standard deviations of the noise, over all elements or over the bright ones less their
        allowance, whichever is larger: 1 where `image` is the clean image.
        """
        from dipengine.kernels.deviance import Electrons, discrepancy

        return discrepancy(image, target, mask, Electrons(*self.electrons(), FLOOR), kernels=kernels)

    def to_dict(self) -> dict[str, Any]:
        return {"data_term": "likelihood", **self.sensor.to_dict()}

    def electrons(self) -> tuple[float, float, float]:
        """(scale, shift, squared read noise): electrons are scale * x + shift for x in [0, 1]."""
        span, low = self.values.span, self.values.low
        return self.sensor.gain * span, self.sensor.gain * (low - self.sensor.offset), self.sensor.read_electrons**2
