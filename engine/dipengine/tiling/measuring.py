"""PSNR and SSIM of images in files, some rows at a time; the measures of `fitting.metrics`, to the last digits of their sums."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dipengine.fitting import metrics
from dipengine.images import Image
from dipengine.images.raw import row_bands

Rows = Callable[[slice], np.ndarray]  # rows of an image as [h, W, C]
Truth = Callable[[slice], Image]


def psnr(image: Rows, truth: Truth, shape: tuple[int, int, int], data_range: float) -> float:
    """Peak signal-to-noise ratio in dB of images of `shape` [H, W, C] where the truth has values; infinite for identical ones."""
    height, width, channels = shape
    squares, count = 0.0, 0
    for rows in row_bands(height, width * channels * 16):
        true = truth(rows)
        difference = image(rows).astype(np.float64) - true.pixels.astype(np.float64)
        difference = difference if true.known is None else difference[true.known]
        squares += float(np.sum(difference**2))
        count += difference.size
    error = squares / count
    return float(10 * np.log10(data_range**2 / error)) if error > 0 else float("inf")


def ssim(image: Rows, truth: Truth, shape: tuple[int, int, int], data_range: float) -> float | None:
    """Structural similarity as `metrics.ssim`; None where that is."""
    height, width, channels = shape
    if min(height, width) < 2 * metrics.SSIM_REACH + 1:
        return None
    total, windows = 0.0, 0
    for inner in row_bands(height - 2 * metrics.SSIM_REACH, width * 128):  # a dozen float64 planes of one channel
        rows = slice(inner.start, inner.stop + 2 * metrics.SSIM_REACH)
        true = truth(rows)
        found, count = metrics.ssim_sum(image(rows), true.pixels, data_range, true.known)
        total, windows = total + found, windows + count
    return total / windows if windows else None
