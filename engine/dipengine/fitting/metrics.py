"""How near a restored image is to the truth. The truth is measured against, never fitted to."""

from __future__ import annotations

import numpy as np

from dipengine.errors import InputError


def psnr(image: np.ndarray, truth: np.ndarray, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels; infinite for identical images.

    `image`, `truth`: [H, W, C] in one unit, whose full range is `data_range`.
    """
    if image.shape != truth.shape:
        raise InputError(f"The images to compare differ in shape: {image.shape} and {truth.shape}.")
    error = np.mean((image.astype(np.float64) - truth.astype(np.float64)) ** 2)
    return float(10 * np.log10(data_range**2 / error)) if error > 0 else float("inf")


def ssim(image: np.ndarray, truth: np.ndarray, data_range: float) -> float | None:
    """Structural similarity (Wang et al. 2004, Gaussian window, scikit-image), mean over channels.

    None where scikit-image is not installed or a side is below the window's 11 pixels.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        return None
    if min(image.shape[:2]) < 11:
        return None
    return float(
        structural_similarity(
            image.astype(np.float64),
            truth.astype(np.float64),
            data_range=data_range,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )
