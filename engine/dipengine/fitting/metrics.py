"""How near a restored image is to the truth. The truth is measured against, never fitted to.

Both are computed where the images live: NumPy or CuPy (`images.namespaces`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dipengine.errors import InputError
from dipengine.images.namespaces import cast, namespace

SSIM_REACH = 5  # pixels: the Gaussian window of standard deviation 1.5, cut off at 3.5 of them
_K1, _K2 = 0.01, 0.03


def psnr(image: Any, truth: Any, data_range: float, known: Any = None) -> float:
    """Peak signal-to-noise ratio in dB over all known pixels and their channels; infinite for identical images.

    `image`, `truth`: [H, W, C] in one unit, whose full range is `data_range`. `known`: bool [H, W], False where the truth has no
    value; None where it has one everywhere.
    """
    if image.shape != truth.shape:
        raise InputError(f"The images to compare differ in shape: {image.shape} and {truth.shape}.")
    xp = namespace(image)
    difference = cast(image, xp.float64) - cast(truth, xp.float64)
    error = float(xp.mean((difference if known is None else difference[known]) ** 2))
    return float(10 * np.log10(data_range**2 / error)) if error > 0 else float("inf")


def ssim(image: Any, truth: Any, data_range: float, known: Any = None) -> float | None:
    """Structural similarity, mean over channels and over the pixels whose window lies inside: Z. Wang et al., "Image quality
    assessment: from error visibility to structural similarity", IEEE TIP 2004, with its Gaussian window of 11 x 11.

    `known` as in `psnr`: windows without a missing pixel count. None where there is none: a side is below the window's 11 pixels,
    say.
    """
    if min(image.shape[:2]) < 2 * SSIM_REACH + 1:
        return None
    total, windows = ssim_sum(image, truth, data_range, known)
    return total / windows if windows else None


def ssim_sum(image: Any, truth: Any, data_range: float, known: Any = None) -> tuple[float, int]:
    """Sum of the structural similarity, mean over channels, over the windows that count, and how many these are. As `ssim`."""
    xp = namespace(image)
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    counts = None
    if known is not None:
        image, truth = (cast(pixels, xp.float64) for pixels in (image, truth))
        image, truth = (xp.where(known[:, :, None], pixels, xp.zeros_like(pixels)) for pixels in (image, truth))
        counts = _windowed(cast(~known, xp.float64)) == 0
    total = 0.0
    for channel in range(image.shape[2]):  # one at a time: a dozen planes are at work
        x, y = cast(image[..., channel], xp.float64), cast(truth[..., channel], xp.float64)
        mean_x, mean_y = _windowed(x), _windowed(y)
        variance_x = _windowed(x * x) - mean_x * mean_x
        variance_y = _windowed(y * y) - mean_y * mean_y
        covariance = _windowed(x * y) - mean_x * mean_y
        above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        below = (mean_x * mean_x + mean_y * mean_y + c1) * (variance_x + variance_y + c2)
        similarity = above / below
        total += float(xp.sum(similarity if counts is None else similarity[counts]))
    windows = math.prod(length - 2 * SSIM_REACH for length in image.shape[:2])
    return total / image.shape[2], windows if counts is None else int(xp.sum(cast(counts, xp.int64)))


def _windowed(plane: Any) -> Any:
    """Gaussian-weighted means of [H, W] over the windows that lie inside, [H - 10, W - 10]."""
    weights = [math.exp(-0.5 * (offset / 1.5) ** 2) for offset in range(-SSIM_REACH, SSIM_REACH + 1)]
    height, width = (length - 2 * SSIM_REACH for length in plane.shape)
    rows = sum(weight * plane[i : i + height, :] for i, weight in enumerate(weights))
    return sum(weight * rows[:, i : i + width] for i, weight in enumerate(weights)) / sum(weights) ** 2
