"""PSNR and SSIM of images in files, some rows at a time; the measures of `fitting.metrics`, to the last digits of their sums."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dipengine.fitting import metrics
from dipengine.images.raw import row_bands

Rows = Callable[[slice], np.ndarray]  # rows of an image as [h, W, C]


def psnr(image: Rows, truth: Rows, shape: tuple[int, int, int], data_range: float) -> float:
    """Peak signal-to-noise ratio in dB of images of `shape` [H, W, C]; infinite for identical ones."""
    height, width, channels = shape
    squares = 0.0
    for rows in row_bands(height, width * channels * 16):
        squares += float(np.sum((image(rows).astype(np.float64) - truth(rows).astype(np.float64)) ** 2))
    error = squares / math.prod(shape)
    return float(10 * np.log10(data_range**2 / error)) if error > 0 else float("inf")


def ssim(image: Rows, truth: Rows, shape: tuple[int, int, int], data_range: float) -> float | None:
    """Structural similarity as `metrics.ssim`; None where that is."""
    height, width, channels = shape
    if min(height, width) < 2 * metrics.SSIM_REACH + 1:
        return None
    total = 0.0
    for inner in row_bands(height - 2 * metrics.SSIM_REACH, width * 128):  # a dozen float64 planes of one channel
        rows = slice(inner.start, inner.stop + 2 * metrics.SSIM_REACH)
        total += metrics.ssim(image(rows), truth(rows), data_range) * (inner.stop - inner.start)
    return total / (height - 2 * metrics.SSIM_REACH)
