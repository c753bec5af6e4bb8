"""What a noisy frame says of its own light: averages over small neighbourhoods, and how strong the noise is beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from dipengine.images.namespaces import cast, extremes, namespace
from dipengine.noise.sensor import Sensor

_NEIGHBOURHOOD = 5  # pixels a side
REACH = _NEIGHBOURHOOD // 2  # pixels from a pixel to the farthest that its light is averaged over


def local_light(electrons: Any, known: Any) -> Any:
    """Mean electrons around each pixel, float64 [H, W, C]. electrons: [H, W, C]; known: bool [H, W] or None."""
    xp = namespace(electrons)
    weights = xp.ones_like(electrons[:, :, :1]) if known is None else cast(known, xp.float64)[:, :, None]
    return _box(electrons * weights) / xp.clip(_box(weights), 1, None)


def relative_noise(sensor: Sensor, electrons: Any, known: Any) -> float:
    """Root mean square noise over the range of the light, which is less than that of the noisy frame: what sigma is to
    255 in a photograph. Arguments as in `local_light`; 1 for an even frame.
    """
    return relative_noise_of_parts(sensor, [(electrons, known, slice(None))])


def relative_noise_of_parts(sensor: Sensor, parts: Iterable[tuple[Any, Any, slice]]) -> float:
    """As `relative_noise`, of an image that comes in parts: each some rows of it (electrons, known) with `REACH` more on either
    side where there are more, and which of them count."""
    total, count, lowest, highest = 0.0, 0, math.inf, -math.inf
    for electrons, known, rows in parts:
        light = local_light(electrons, known)[rows, ...]
        light = light if known is None else light[known[rows, ...]]
        size = math.prod(light.shape)
        if not size:
            continue
        xp = namespace(light)
        total, count = total + float(xp.sum(xp.clip(light, 0, None))), count + size
        least, most = extremes(light)
        lowest, highest = min(lowest, least), max(highest, most)
    noise = math.sqrt(total / count + sensor.read_electrons**2)
    return min(1.0, noise / max(highest - lowest, noise))


def _box(planes: Any) -> Any:
    """Sums over the neighbourhood of each pixel, [H, W, C], nothing beyond the borders."""
    xp = namespace(planes)
    for axis in (0, 1):
        total, length = xp.zeros_like(planes), planes.shape[axis]
        for offset in range(-min(REACH, length - 1), min(REACH, length - 1) + 1):
            to = slice(max(-offset, 0), length - max(offset, 0))
            of = slice(max(offset, 0), length - max(-offset, 0))
            if axis == 0:
                total[to, ...] += planes[of, ...]
            else:
                total[:, to, ...] += planes[:, of, ...]
        planes = total
    return planes
