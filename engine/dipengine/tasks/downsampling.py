"""The downsampling operator of super-resolution: a normalised filter, then every factor-th sample, replicated borders.

All filters are separable. In one dimension, with k taps and their centre c, output i reads the input samples
`factor*i + shift + (t - c)`, t = 0..k-1. "Centred" (the authors' phase 0.5 at even factors) puts each small pixel over
the middle of its factor x factor block; `aligned` puts it over the block's first pixel (the authors' phase 0).
Kernels: K. Turkowski, "Filters for Common Resampling Tasks" (1990), as the authors' `Downsampler` uses them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dipengine.errors import InputError

KERNELS = ("lanczos2", "lanczos3", "gauss12", "gauss1sq2", "box")

# name: (width in pixels, standard deviation in pixels); the authors' exponent is (d/2)^2 / (2 sigma^2)
_GAUSSIANS = {"gauss12": (7, 1.0), "gauss1sq2": (9, np.sqrt(2.0))}


def filter_taps(kernel: str, factor: int, *, centred: bool = True) -> np.ndarray:
    """One-dimensional filter, float64, sum 1.

    `centred` filters have a length of the factor's parity, so that they can lie over the middle of a block; otherwise
    the length is odd. Raises InputError for an unknown kernel or a factor below 1.
    """
    if factor < 1:
        raise InputError(f"factor is {factor}; a downsampling factor is at least 1.")
    odd = factor % 2 == 1 or not centred
    if kernel == "box":
        taps = np.ones(factor)
    elif kernel in ("lanczos2", "lanczos3"):
        support = int(kernel[-1])
        distance = _offsets(2 * support * factor + (1 if odd else 0)) / factor
        taps = np.sinc(distance) * np.sinc(distance / support)
    elif kernel in _GAUSSIANS:
        width, deviation = _GAUSSIANS[kernel]
        distance = _offsets(width if odd else width + 1)
        taps = np.exp(-0.5 * (distance / deviation) ** 2)
    else:
        raise InputError(f"There is no downsampler {kernel!r}; choose one of {', '.join(KERNELS)}.")
    return taps / taps.sum()


def _offsets(length: int) -> np.ndarray:
    return np.arange(length) - (length - 1) / 2


@dataclass(frozen=True)
class Downsampling:
    """x [1, C, H, W] -> [1, C, ceil(H/factor), ceil(W/factor)]."""

    factor: int
    kernel: str = "lanczos2"
    centred: bool = True
    light = True  # next to the generator
    has_kernels = True

    @cached_property
    def _kept(self) -> dict:
        return {}

    @cached_property
    def taps(self) -> np.ndarray:
        return filter_taps(self.kernel, self.factor, centred=self.centred)

    @property
    def before(self) -> int:
        """Samples that the first output reads before the first input sample."""
        length = len(self.taps)
        if self.kernel == "box":
            return 0
        return (length - self.factor) // 2 if self.centred else (length - 1) // 2

    def apply(self, image, kernels: str = "torch"):
        """See ForwardOperator.apply; float32 or float64. kernels: as `kernels.resample.downsample` takes them."""
        import torch

        from dipengine.kernels.resample import downsample

        key = image.dtype, image.device
        if key not in self._kept:  # a device would be waited for at every call
            self._kept[key] = torch.as_tensor(self.taps, dtype=image.dtype, device=image.device)
        return downsample(image, self._kept[key], self.factor, self.before, kernels=kernels)

    def to_dict(self) -> dict[str, Any]:
        return {"downsampler": self.kernel, "centred": self.centred}
