"""JPEG artefacts: every coefficient of the delivered image lies near the multiple of its step that the file holds.

A JPEG file says of each coefficient of an 8 x 8 block between which two bounds it was: half a step around a multiple of the step
(A. Zakhor, "Iterative Procedures for Reduction of Blocking Effects in Transform Image Coding", 1992). What the generator painted is
taken to the nearest image within narrower bounds, in which most coefficients lie and the truth nearly (S. H. Park, D. S. Kim, "Theory
of Projection onto the Narrow Quantization Constraint Set and Its Application", 1999): so detail that the generator has not learnt yet is
there all the same, and a fit may end before it has learnt the artefacts. Nearest is meant in Y, Cb and Cr; colour is compared where it
was coded, in samples of 1, 2 or more pixels a side.

Of an image that is no JPEG file any more (PNG, an array) the steps are looked for among the tables of T.81, annex K, as libjpeg
scales them by a quality of 1 to 100, and among these turned by a right angle.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from dipengine.images.jpeg_coding import BLOCK, JpegCoding, table
from dipengine.images.namespaces import beside, on_host
from dipengine.images.orientation import as_stored, upright

_NARROW = 0.5  # of a step: how far apart the bounds are (bench/agreement.py)
_LEVELS = 255.0
# From red, green and blue to Y, Cb and Cr without their offsets (JFIF 1.02), and back.
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_OFFSETS = np.float32(128), np.float32(0), np.float32(0)  # what is coded of each is the difference from it, here
_TO_RGB = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]])

# Coefficients that are not 0 lie, where they were rounded to the steps, this near to a multiple of them, in steps and in the median;
# where they were not, a quarter of a step. Lightness, by which the steps are told, is also this near in levels: the rounding of pixels.
_NEAR, _NEAR_LEVELS = 0.12, 0.8
_ENOUGH, _ENOUGH_COLOUR = 64, 16  # such coefficients, for a judgement; of colours where the steps of lightness are known
_SAMPLINGS = (1, 1), (2, 2), (1, 2), (2, 1), (1, 4), (4, 1)  # of colours
_MARGIN = 0.7  # of how far the next is, at most
_LEAST_STEP = 3  # smaller ones are lost in the rounding of pixels
_MOST_BLOCKS = 4096
_PIECE, _REACH = 256, 16  # rows that are halved at once, and more on either side that have a say in them

_LUMINANCE = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100,
    103, 99,
])
_CHROMINANCE = np.array([
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
    *[99] * 32,
])


def _cosines() -> np.ndarray:
    """The orthonormal transform of eight samples, float32 [frequency, sample]."""
    frequency, sample = np.mgrid[:BLOCK, :BLOCK]
    made = np.cos((2 * sample + 1) * frequency * np.pi / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
    made[0] /= np.sqrt(2)
    return made.astype(np.float32)


_COSINES = _cosines()


class Quantisation:
    """Agreement of an image with the JPEG that it was decoded from.

    decoded: float32 [H, W, C] in [0, 1], C 1 or 3. coding: of its components; those without steps are left as painted. known: bool
    [H, W], False where `decoded` means nothing; None: everywhere.
    """

    def __init__(self, decoded: Any, coding: JpegCoding, known: Any = None) -> None:
        self.coding = coding
        self._decoded = decoded
        self._known = known

    def apply(self, image: Any) -> Any:
        """The nearest image within the bounds, float32 [H, W, C] in [0, 1], an array like the one given (by way of the host)."""
        painted, decoded = on_host(image), on_host(self._decoded)
        if self._known is not None:
            decoded = np.where(on_host(self._known)[:, :, None], decoded, painted)
        grid = _Grid(self.coding, painted.shape)
        painted, decoded = grid.on(painted), grid.on(decoded)
        change = np.zeros_like(painted)
        for component, (steps, sampling) in enumerate(zip(self.coding.steps, self.coding.sampling)):
            if steps is None:
                continue
            weights = _weights(painted.shape[2], _TO_YCC)[component]
            away = _pooled(painted @ weights, sampling) - _samples(decoded @ weights, sampling)
            coefficients = _transformed(away)
            bound = np.array(steps, np.float32) * np.float32(_NARROW / 2) * grid.looseness(sampling)
            outside = coefficients - np.clip(coefficients, -bound, bound)
            moved = np.kron(_image_of(outside), np.ones(sampling, np.float32))
            change -= moved[:, :, None] * _weights(painted.shape[2], _TO_RGB)[:, component]
        return beside(np.clip(grid.off(painted + change) / np.float32(_LEVELS), 0, 1), image)


def checked(pixels: Any, coding: JpegCoding) -> JpegCoding | None:
    """The coding without the steps of a colour that an image does not show; None where it does not show those of its lightness, because
    it was changed after it had been decoded. pixels: float32 [H, W, C] in [0, 1]."""
    stored = _Grid(coding, tuple(pixels.shape)).within(on_host(pixels))
    if stored.shape[2] != len(coding.steps):
        return None
    steps = []
    for component, (wanted, sampling) in enumerate(zip(coding.steps, coding.sampling)):
        count, away, levels = (0, 0.0, 0.0) if wanted is None else _away(_shown(stored, component, sampling), np.array(wanted))
        shown = away < _NEAR and (component > 0 or levels < _NEAR_LEVELS)
        steps.append(wanted if count < _ENOUGH or shown else None)
    return None if steps[0] is None else replace(coding, steps=tuple(steps), certain=True)


def found_in(pixels: Any) -> JpegCoding | None:
    """The coding that an image shows; None where it shows none. pixels: float32 [H, W, C] in [0, 1], whose first block begins in the
    upper left corner."""
    height, width, channels = pixels.shape
    if channels not in (1, 3) or min(height, width) < BLOCK:
        return None
    stored = on_host(pixels).astype(np.float32) * np.float32(_LEVELS)
    luma = _shown(stored, 0, (1, 1))
    tables = {(quality, turned): _scaled(_LUMINANCE, quality, turned) for turned in (False, True) for quality in range(1, 100)}
    found = {name: _away(luma, steps) for name, steps in tables.items()}
    name = _nearest({name: away for name, away in found.items() if away[2] < _NEAR_LEVELS}, _ENOUGH)
    if name is None:
        return None
    steps = table(tables[name])
    if channels == 1:
        return JpegCoding((steps,), ((1, 1),), certain=True)
    chroma, candidates = _scaled(_CHROMINANCE, *name), {}
    for sampling in _SAMPLINGS:
        both = np.concatenate([_shown(stored, component, sampling) for component in (1, 2)])
        candidates[sampling] = _away(both, chroma, means=True)
    sampling = _nearest(candidates, _ENOUGH_COLOUR, margin=_MARGIN)
    if sampling is None:
        return JpegCoding((steps, None, None), ((1, 1),) * 3, certain=True)
    return JpegCoding((steps, table(chroma), table(chroma)), ((1, 1), sampling, sampling), certain=True)


def _nearest(candidates: dict[Any, tuple[int, float, float]], enough: int, margin: float = math.inf) -> Any:
    """The name of the steps whose multiples the coefficients are nearest to (what `_away` said of each), of those that at least `enough`
    of them are near to; None where there are none, and where it is more than `margin` times as far as the next. Steps a little off are
    near, too, and half the steps are half as near."""
    near = {name: away for name, (count, away, _) in candidates.items() if count >= enough and away < _NEAR}
    best, *others = sorted(near, key=near.get) or [None]
    return best if not others or near[best] <= margin * near[others[0]] else None


def _scaled(steps: np.ndarray, quality: int, turned: bool) -> np.ndarray:
    """A table as libjpeg scales it, [8, 8]; of a picture that was turned by a right angle since."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    made = np.clip((steps * percent + 50) // 100, 1, 255).reshape(BLOCK, BLOCK)
    return made.T if turned else made


def _away(coefficients: np.ndarray, steps: np.ndarray, *, means: bool = False) -> tuple[int, float, float]:
    """How many coefficients [n, 8, 8] are no 0 in multiples of their steps [8, 8], and how far such a one is from its multiple, in steps
    and in levels: the medians. means: the blocks' means count, too, which are less exact, for in plain blocks all pixels are rounded the
    same way."""
    multiples = coefficients / steps
    told = (np.abs(multiples) > 0.5) & (steps >= _LEAST_STEP)
    told[:, 0, 0] &= means
    if not told.any():
        return 0, 0.0, 0.0
    away = np.abs(multiples - np.rint(multiples))
    return int(np.count_nonzero(told)), float(np.median(away[told])), float(np.median((away * steps)[told]))


def _shown(stored: np.ndarray, component: int, sampling: tuple[int, int]) -> np.ndarray:
    """Coefficients [n, 8, 8] of a component of pixels [h, w, C] whose first block begins in the upper left corner: of a number of blocks
    that suffices, and none in which black or white may have cut something off."""
    rows, columns = (BLOCK * factor for factor in sampling)
    down, across = stored.shape[0] // rows, stored.shape[1] // columns
    if down == 0 or across == 0:
        return np.empty((0, BLOCK, BLOCK), np.float32)
    stored = stored[: down * rows, : across * columns]
    plane = _samples(stored @ _weights(stored.shape[2], _TO_YCC)[component], sampling) - _OFFSETS[component]
    parts = stored.reshape(down, rows, across, columns, -1)
    whole = (parts.min(axis=(1, 3, 4)) > 0.5) & (parts.max(axis=(1, 3, 4)) < _LEVELS - 0.5)
    coefficients = _transformed(plane)[whole]
    return coefficients[:: -(-len(coefficients) // _MOST_BLOCKS) or 1]


class _Grid:
    """Between an upright image and its place on the grid of blocks, beyond whose edges the outermost pixels are repeated as encoders
    do."""

    def __init__(self, coding: JpegCoding, shape: tuple[int, ...]) -> None:
        self._orientation = coding.orientation
        turned = coding.orientation >= 5
        self._sides = shape[1::-1] if turned else shape[:2]
        self._units = [BLOCK * max(factors[axis] for factors in coding.sampling) for axis in (0, 1)]
        self._before = [first % unit for first, unit in zip(coding.origin, self._units)]
        self._pads = [(before, -(before + side) % unit) for before, side, unit in zip(self._before, self._sides, self._units)]

    def on(self, image: np.ndarray) -> np.ndarray:
        """[H, W, C] in [0, 1] -> [h, w, C] float32 in 8-bit levels, whole blocks of the stored layout."""
        return np.pad(as_stored(image.astype(np.float32), self._orientation) * np.float32(_LEVELS), (*self._pads, (0, 0)), mode="edge")

    def within(self, image: np.ndarray) -> np.ndarray:
        """As `on`, of the blocks that lie in the image as a whole; it may have none."""
        stored = as_stored(image.astype(np.float32), self._orientation) * np.float32(_LEVELS)
        first = [-before % unit for before, unit in zip(self._before, self._units)]
        count = [max(side - start, 0) // unit * unit for side, start, unit in zip(self._sides, first, self._units)]
        return stored[first[0] : first[0] + count[0], first[1] : first[1] + count[1]]

    def looseness(self, sampling: tuple[int, int]) -> np.ndarray:
        """For each block of a component, [m, n, 1, 1], what its bounds are multiplied by: 1, and 2 where it reaches beyond the image, and
        what is there is not known but nearly."""
        inside = []
        for (before, after), side, factor in zip(self._pads, self._sides, sampling):
            first = BLOCK * factor * np.arange((before + side + after) // (BLOCK * factor))
            inside.append((first >= before) & (first + BLOCK * factor <= before + side))
        return np.where(np.logical_and.outer(*inside), 1, 2).astype(np.float32)[:, :, None, None]

    def off(self, stored: np.ndarray) -> np.ndarray:
        """The inverse, in levels."""
        (top, left), (height, width) = self._before, self._sides
        return upright(stored[top : top + height, left : left + width], self._orientation)


def _weights(channels: int, matrix: np.ndarray) -> np.ndarray:
    """The colour matrix of an image of so many channels, float32."""
    return (matrix if channels == 3 else np.ones((1, 1))).astype(np.float32)


def _pooled(plane: np.ndarray, sampling: tuple[int, int]) -> np.ndarray:
    """The mean over each sample's pixels, as encoders take it."""
    rows, columns = sampling
    height, width = plane.shape
    return plane.reshape(height // rows, rows, width // columns, columns).mean(axis=(1, 3))


def _samples(plane: np.ndarray, sampling: tuple[int, int]) -> np.ndarray:
    """The samples that a decoder made a plane of: libjpeg puts three quarters of the nearer and a quarter of the farther one between
    two samples along an axis that was halved, and repeats samples along others."""
    for axis, factor in enumerate(sampling):
        if factor == 2:
            plane = np.moveaxis(_halved(np.moveaxis(plane, axis, 0)), 0, axis)
        elif factor > 2:
            plane = _pooled(plane, (factor, 1) if axis == 0 else (1, factor))
    return plane


def _halved(plane: np.ndarray) -> np.ndarray:
    """Along the first axis, by least squares; the weights fall off so fast that far rows are left out."""
    count = plane.shape[0] // 2
    made = np.empty((count, plane.shape[1]), np.float32)
    for first in range(0, count, _PIECE):
        low, high = max(first - _REACH, 0), min(first + _PIECE + _REACH, count)
        solved = _inverse_of_doubling(high - low) @ plane[2 * low : 2 * high]
        last = min(first + _PIECE, count)
        made[first:last] = solved[first - low : last - low]
    return made



def _inverse_of_doubling(count: int) -> np.ndarray:
    """[count, 2 count]: the pseudo-inverse of libjpeg's doubling of `count` samples."""
    doubled = np.zeros((2 * count, count))
    index = np.arange(count)
    for offset, neighbour in ((0, -1), (1, 1)):
        doubled[2 * index + offset, index] += 0.75
        doubled[2 * index + offset, np.clip(index + neighbour, 0, count - 1)] += 0.25
    return np.linalg.solve(doubled.T @ doubled, doubled.T).astype(np.float32)


def _transformed(plane: np.ndarray) -> np.ndarray:
    """[8 m, 8 n] -> float32 [m, n, 8, 8]: the orthonormal cosine transform of each block."""
    rows, columns = (side // BLOCK for side in plane.shape)
    blocks = plane.reshape(rows, BLOCK, columns, BLOCK).transpose(0, 2, 1, 3)
    return _COSINES @ blocks @ _COSINES.T


def _image_of(coefficients: np.ndarray) -> np.ndarray:
    """The inverse of `_transformed`."""
    rows, columns = coefficients.shape[:2]
    blocks = _COSINES.T @ coefficients @ _COSINES
    return blocks.transpose(0, 2, 1, 3).reshape(rows * BLOCK, columns * BLOCK)
