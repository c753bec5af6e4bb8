"""What a noisy frame says of its own light: averages over small neighbourhoods, and how strong the noise is beside them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dipengine.noise.sensor import Sensor

_NEIGHBOURHOOD = 5  # pixels a side
REACH = _NEIGHBOURHOOD // 2  # pixels from a pixel to the farthest that its light is averaged over


def local_light(electrons: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    """Mean electrons around each pixel, float64 [H, W, C]. electrons: [H, W, C]; known: bool [H, W] or None."""
    weights = np.ones(electrons.shape[:2]) if known is None else known.astype(np.float64)
    weights = weights[:, :, None]
    return _box(electrons * weights) / np.maximum(_box(weights), 1)


def relative_noise(sensor: Sensor, electrons: np.ndarray, known: np.ndarray | None) -> float:
    """Root mean square noise over the range of the light, which is less than that of the noisy frame: what sigma is to
    255 in a photograph. Arguments as in `local_light`; 1 for an even frame.
    """
    return relative_noise_of_parts(sensor, [(electrons, known, slice(None))])


def relative_noise_of_parts(sensor: Sensor, parts: Iterable[tuple[np.ndarray, np.ndarray | None, slice]]) -> float:
    """As `relative_noise`, of an image that comes in parts: each some rows of it (electrons, known) with `REACH` more on either
    side where there are more, and which of them count."""
    total, count, lowest, highest = 0.0, 0, np.inf, -np.inf
    for electrons, known, rows in parts:
        light = local_light(electrons, known)[rows]
        light = light.reshape(-1, light.shape[2]) if known is None else light[known[rows]]
        if not light.size:
            continue
        total, count = total + np.maximum(light, 0).sum(), count + light.size
        lowest, highest = min(lowest, light.min()), max(highest, light.max())
    noise = np.sqrt(total / count + sensor.read_electrons**2)
    return min(1.0, float(noise / max(highest - lowest, noise)))


def _box(planes: np.ndarray) -> np.ndarray:
    """Sums over the neighbourhood of each pixel, [H, W, C], nothing beyond the borders."""
    for axis in (0, 1):
        width = [(0, 0)] * 3
        width[axis] = (REACH + 1, REACH)
        total = np.cumsum(np.pad(planes, width), axis=axis)
        low = np.take(total, range(planes.shape[axis]), axis=axis)
        planes = np.take(total, range(_NEIGHBOURHOOD, _NEIGHBOURHOOD + planes.shape[axis]), axis=axis) - low
    return planes
