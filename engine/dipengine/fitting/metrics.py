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


def psnr(image: Any, truth: Any, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels; infinite for identical images.

    `image`, `truth`: [H, W, C] in one unit, whose full range is `data_range`.
    """
    if image.shape != truth.shape:
        raise InputError(f"The images to compare differ in shape: {image.shape} and {truth.shape}.")
    xp = namespace(image)
    error = float(xp.mean((cast(image, xp.float64) - cast(truth, xp.float64)) ** 2))
    return float(10 * np.log10(data_range**2 / error)) if error > 0 else float("inf")


def ssim(image: Any, truth: Any, data_range: float) -> float | None:
    """Structural similarity, mean over channels and over the pixels whose window lies inside: Z. Wang et al., "Image quality
    assessment: from error visibility to structural similarity", IEEE TIP 2004, with its Gaussian window of 11 x 11.

    None where a side is below the window's 11 pixels.
    """
    size = 2 * SSIM_REACH + 1
    if min(image.shape[:2]) < size:
        return None
    xp = namespace(image)
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    total = 0.0
    for channel in range(image.shape[2]):  # one at a time: a dozen planes are at work
        x, y = cast(image[..., channel], xp.float64), cast(truth[..., channel], xp.float64)
        mean_x, mean_y = _windowed(x), _windowed(y)
        variance_x = _windowed(x * x) - mean_x * mean_x
        variance_y = _windowed(y * y) - mean_y * mean_y
        covariance = _windowed(x * y) - mean_x * mean_y
        above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        below = (mean_x * mean_x + mean_y * mean_y + c1) * (variance_x + variance_y + c2)
        total += float(xp.mean(above / below))
    return total / image.shape[2]


def _windowed(plane: Any) -> Any:
    """Gaussian-weighted means of [H, W] over the windows that lie inside, [H - 10, W - 10]."""
    weights = [math.exp(-0.5 * (offset / 1.5) ** 2) for offset in range(-SSIM_REACH, SSIM_REACH + 1)]
    height, width = (length - 2 * SSIM_REACH for length in plane.shape)
    rows = sum(weight * plane[i : i + height, :] for i, weight in enumerate(weights))
    return sum(weight * rows[:, i : i + width] for i, weight in enumerate(weights)) / sum(weights) ** 2
