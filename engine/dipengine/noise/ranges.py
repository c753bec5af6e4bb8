"""The range over which a counting sensor's image is fitted: what its values mean, not what integers could hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dipengine.images import ValueMap
from dipengine.noise.sensor import Sensor


def light_range(
    pixels: Any, known: Any, value_range: Sequence[float] | None, sensor: Sensor
) -> ValueMap:
    """The map over the known pixels' values, from one read noise below the black level on (`value_range` overrides).

    Light is never negative, so that lower values are noise, and a generator that cannot paint them has less to unlearn; one
    read noise is left for a black level that was measured a little too high. pixels: [H, W, C] in data units, of any dtype;
    known: bool [H, W] or None.
    """
    values = ValueMap.for_image(pixels, known, value_range, data_units=True)
    if value_range is not None:
        return values
    return ValueMap(max(values.low, sensor.offset - sensor.read_noise), values.high)
