"""How strong white Gaussian noise is, told from the noisy image alone, and whether noise is white.

G. Chen, F. Zhu, P. A. Heng, "An Efficient Statistical Method for Image Noise Level Estimation", ICCV 2015: patches of an image lie
near a low-dimensional subspace, and noise adds its variance in all directions alike. So the smallest eigenvalues of the patches'
covariance scatter around sigma^2: those are taken whose mean is no larger than their median.

Patches are of 5 x 5 pixels in colour and 8 x 8 in grey, smaller where the image is so small that these would be few for so many
eigenvalues. Texture and sharp edges count as noise where there is little of it, in grey images above all (in colour the channels
tell them apart); noise that JPEG, demosaicking or resampling has smeared over neighbours is told too low.

Both are seen in the eigenvalues themselves: of white noise that outweighs the texture the smallest quarter lies within 1.05 to 1.5
times the smallest one (photographs of 48x48 to 256x256, sigma 5 to 25; the estimate is then off by 20 % at most, a few as a rule),
of noise blurred by half a pixel, of demosaicked, resampled and most JPEG images above 1.6, and of images without noise too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dipengine.errors import InputError
from dipengine.images.namespaces import cast, namespace, on_host

_SIDES = {1: 8, 2: 6, 3: 5, 4: 4}  # of patches, pixels, by their channels: 64 to 75 values each
_SMALL_SIDES = {1: 5, 2: 4, 3: 3, 4: 3}
_ENOUGH = 600  # patches, for the larger ones
_WHITE = 1.5
_LEAST = 100  # patches, for any estimate
_MOST = 50_000  # more add little: rows and columns are passed over
_AT_ONCE = 20_000
_NOTHING = 1e-10  # of the variance of pixels: rounding


@dataclass(frozen=True)
class NoiseLevel:
    """sigma: standard deviation, in the units of the pixels, of four digits: sums that differ in their order give the same one.
    spread: eigenvalue at the first quarter over the smallest one."""

    sigma: float
    spread: float

    @property
    def white(self) -> bool:
        """Whether the estimate can be relied on: the noise is white, and more than the texture."""
        return self.spread <= _WHITE


def estimated_noise(pixels: Any, known: Any = None) -> NoiseLevel:
    """pixels: [H, W, C], of any library; known: bool [H, W] beside it, or None.

    Raises InputError where too little of the image is known, and where it shows no noise.
    """
    return estimated_noise_of_parts(tuple(pixels.shape[:2]), [(pixels, known, slice(0, pixels.shape[0]))])


def estimated_noise_of_parts(shape: tuple[int, int], parts: Iterable[tuple[Any, Any, slice]]) -> NoiseLevel:
    """As `estimated_noise`, of an image of `shape` (H, W) that comes in parts from top to bottom: (pixels, known, rows), of which
    `rows` belong to the part and those beyond to its neighbours."""
    stride = max(1, math.ceil(math.sqrt(shape[0] * shape[1] / _MOST)))
    found: list[_Moments] = []
    for pixels, known, rows in parts:
        channels = pixels.shape[2]
        # More than four are no colours: each is an image of its own.
        groups = [slice(0, channels)] if channels in _SIDES else [slice(c, c + 1) for c in range(channels)]
        depth = groups[0].stop
        side = _side(shape, depth)
        found = found or [_Moments(side * side * depth) for _ in groups]
        for group, moments in zip(groups, found):
            for patches in _patches(pixels[:, :, group], known, rows, side, stride):
                moments.add(patches)
    if not found or found[0].count < _LEAST:
        raise InputError(
            "The image is too small, or too little of it is known, to tell how strong its noise is; give sigma, its standard deviation "
            "in the image's own units, or leave noise out."
        )
    covariances = [moments.covariance() for moments in found]
    spectra = [np.linalg.eigvalsh(covariance) for covariance in covariances]  # rising
    variance = float(np.mean([_smallest(values) for values in spectra]))
    if not variance > _NOTHING * np.mean([np.diag(covariance) for covariance in covariances]):
        raise InputError("The image shows no noise, so that its standard deviation cannot be told; give sigma, or leave noise out.")
    spread = max(float(values[len(values) // 4] / values[0]) if values[0] > 0 else math.inf for values in spectra)
    return NoiseLevel(float(f"{math.sqrt(variance):.4g}"), spread)


def _side(shape: tuple[int, int], depth: int) -> int:
    """Of patches of `depth` channels in an image of (H, W)."""
    side = _SIDES[depth]
    height, width = (max(0, length - side + 1) for length in shape)
    return side if height * width >= _ENOUGH and min(height, width) > side else _SMALL_SIDES[depth]


def _smallest(values: np.ndarray) -> float:
    """The mean of as many of the smallest eigenvalues (rising) as do not lean to larger ones."""
    while values.mean() > np.median(values):
        values = values[:-1]
    return float(values.mean())


def _patches(pixels: Any, known: Any, rows: slice, side: int, stride: int) -> Iterable[Any]:
    """Patches whose first row is one of `rows`, [n, side * side * C] in float64, some at a time."""
    xp = namespace(pixels)
    height, width = pixels.shape[0] - side + 1, pixels.shape[1] - side + 1
    if width < 1:
        return
    step = max(1, _AT_ONCE // max(1, math.ceil(width / stride))) * stride
    for first in range(rows.start, min(rows.stop, height), step):
        last = min(first + step, rows.stop, height)
        windows = [(slice(first + i, last + i, stride), slice(j, width + j, stride)) for i in range(side) for j in range(side)]
        block = xp.stack([xp.reshape(cast(pixels[(*window, ...)], xp.float64), (-1, pixels.shape[2])) for window in windows], axis=1)
        block = xp.reshape(block, (block.shape[0], -1))
        if known is not None:
            there = xp.all(xp.stack([xp.reshape(known[window], (-1,)) for window in windows], axis=1), axis=1)
            block = block[there]
        if block.shape[0]:
            yield block


class _Moments:
    """First and second moments of vectors of `length`."""

    def __init__(self, length: int) -> None:
        self.count = 0
        self._shift: Any = None  # so that a small variance beside a large mean is not lost
        self._sum = np.zeros(length)
        self._products = np.zeros((length, length))

    def add(self, vectors: Any) -> None:
        """[n, length]."""
        xp = namespace(vectors)
        if self._shift is None:
            self._shift = float(xp.mean(vectors))
        vectors = vectors - self._shift
        self.count += vectors.shape[0]
        self._sum += on_host(xp.sum(vectors, axis=0))
        self._products += on_host(vectors.T @ vectors)

    def covariance(self) -> np.ndarray:
        mean = self._sum / self.count
        return self._products / self.count - np.outer(mean, mean)
