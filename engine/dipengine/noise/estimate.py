"""How strong white Gaussian noise is, told from the noisy image alone, and whether noise is white.

G. Chen, F. Zhu, P. A. Heng, "An Efficient Statistical Method for Image Noise Level Estimation", ICCV 2015: patches of an image lie
near a low-dimensional subspace, and noise adds its variance in all directions alike. So the smallest eigenvalues of the patches'
covariance scatter around sigma^2: those are taken whose mean is no larger than their median.

Patches are of 5 x 5 pixels in colour and 8 x 8 in grey, smaller where the image is so small that these would be few for so many
eigenvalues. Texture and sharp edges count as noise where there is little of it, in grey images above all (in colour the channels
tell them apart); noise that JPEG, demosaicking or resampling has smeared over neighbours is told too low.

Both are seen in the eigenvalues themselves. Of white noise that outweighs the texture a quarter of them lies within 1.5 times the
smallest one; of noise smeared by half a pixel or more, of resampled and of most JPEG images, and of images without noise it does not
(bench/noise_level.py). Where interpolation leaves nothing in some directions, as demosaicking does, the smallest are those of the
rounding to 8 bits, which is white: then those at the half are tens of times larger, where white noise has less than 4. And noise that
is the same in all channels (a tinted grey image), or much stronger in one than in another, is told too low by the patches of all
channels together: they are compared with each channel's own. An image whose channels are all the same is grey.
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
PATCH = max(_SIDES.values())  # rows that one may need
_ENOUGH = 600  # patches, for the larger ones
_WHITE = 1.5, 4.0  # of `NoiseLevel.spread`, at most
_EVEN = 0.65  # of `NoiseLevel.evenness`, at least
_LEAST = 100  # patches, for any estimate
_MOST = 50_000  # more add little: rows and columns are passed over
_AT_ONCE = 20_000
_NOTHING = 1e-10  # of the variance of pixels: rounding


@dataclass(frozen=True)
class NoiseLevel:
    """sigma: standard deviation, in the units of the pixels, of four digits: sums that differ in their order give the same one.
    spread: the eigenvalues at the first quarter and at the half over the smallest one.
    evenness: sigma over that of the channels looked at one by one, root mean square; 1 in grey."""

    sigma: float
    spread: tuple[float, float]
    evenness: float

    @property
    def white(self) -> bool:
        """Whether the estimate can be relied on: the noise is white, and more than the texture."""
        return all(ratio <= limit for ratio, limit in zip(self.spread, _WHITE)) and self.evenness >= _EVEN


def estimated_noise(pixels: Any, known: Any = None) -> NoiseLevel:
    """pixels: [H, W, C], of any library; known: bool [H, W] beside it, or None.

    Raises InputError where too little of the image is known, and where it shows no noise.
    """
    return estimated_noise_of_parts(tuple(pixels.shape[:2]), [(pixels, known, slice(0, pixels.shape[0]))])


def estimated_noise_of_parts(shape: tuple[int, int], parts: Iterable[tuple[Any, Any, slice]]) -> NoiseLevel:
    """As `estimated_noise`, of an image of `shape` (H, W) that comes in parts from top to bottom: (pixels, known, rows), of which
    `rows` belong to the part and those beyond to its neighbours."""
    stride = max(1, math.ceil(math.sqrt(shape[0] * shape[1] / _MOST)))
    found: dict[tuple[int, int, int], _Moments] = {}  # of patches by side, first and last channel
    grey, grey_side = True, _side(shape, 1)
    for pixels, known, rows in parts:
        channels = pixels.shape[2]
        # More than four are no colours: each is an image of its own.
        groups = [(0, channels)] if channels in _SIDES else [(c, c + 1) for c in range(channels)]
        kinds = [(_side(shape, last - first), first, last) for first, last in groups]
        if 1 < channels and channels in _SIDES:
            kinds += [(_SMALL_SIDES[1], c, c + 1) for c in range(channels)]
            grey = grey and _channels_are_the_same(pixels, known)
            if grey and grey_side != _SMALL_SIDES[1]:
                kinds.append((grey_side, 0, 1))
        for side, first, last in kinds:
            moments = found.setdefault((side, first, last), _Moments(side * side * (last - first)))
            for patches in _patches(pixels[:, :, first:last], known, rows, side, stride):
                moments.add(patches)
    together, alone = list(found.values()), []
    if together and 1 < channels and channels in _SIDES:
        together, alone = ([found[grey_side, 0, 1]], []) if grey else (together[:1], together[1 : 1 + channels])
    if not together or min(moments.count for moments in together + alone) < _LEAST:
        raise InputError(
            "The image is too small, or too little of it is known, to tell how strong its noise is; give sigma, its standard deviation "
            "in the image's own units, or leave noise out."
        )
    covariances = [moments.covariance() for moments in together]
    spectra = [np.linalg.eigvalsh(covariance) for covariance in covariances]  # rising
    variance = float(np.mean([_smallest(values) for values in spectra]))
    if not variance > _NOTHING * np.mean([np.diag(covariance) for covariance in covariances]):
        raise InputError("The image shows no noise, so that its standard deviation cannot be told; give sigma, or leave noise out.")
    quarter, half = (max(_over_smallest(values, part) for values in spectra) for part in (4, 2))
    by_channel = [_smallest(np.linalg.eigvalsh(moments.covariance())) for moments in alone] or [variance]
    channels_own = float(np.mean(by_channel))  # rounding may bring that of a clean one below 0
    evenness = math.sqrt(variance / channels_own) if channels_own > 0 else math.inf
    return NoiseLevel(float(f"{math.sqrt(variance):.4g}"), (quarter, half), evenness)


def _channels_are_the_same(pixels: Any, known: Any) -> bool:
    xp = namespace(pixels)
    same = pixels[:, :, 1:] == pixels[:, :, :1]
    return bool(xp.all(same if known is None else same | ~known[..., None]))


def _over_smallest(values: np.ndarray, part: int) -> float:
    return float(values[len(values) // part] / values[0]) if values[0] > 0 else math.inf


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
