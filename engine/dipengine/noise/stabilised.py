"""Fitting a counting sensor's image behind the generalised Anscombe transform: noise there is Gaussian of one variance.

The generator paints stabilised values, so the data term stays the squared error, and the discrepancy principle its
sigma. The square root also spreads what a linear frame of great range crowds together at its dark end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dipengine.errors import InputError
from dipengine.images import ValueMap
from dipengine.images.namespaces import mean
from dipengine.noise.anscombe import Anscombe
from dipengine.noise.light import local_light
from dipengine.noise.sensor import Sensor


def stabilised_map(values: ValueMap, sensor: Sensor) -> ValueMap:
    """The map over the same data values, through the transform. Raises InputError for a range without light."""
    stabilised = ValueMap(values.low, values.high, Anscombe(sensor))
    start, end = stabilised.fitted_range
    if start >= end:
        raise InputError(
            f"The value range {values.low:g},{values.high:g} lies below the black level {sensor.offset:g}; "
            f"give one that reaches above it."
        )
    return stabilised


def stabilised_sigma(values: ValueMap, pixels: Any, known: Any) -> float:
    """Standard deviation of the noise in [0, 1] units: that of unit noise, less where the image has few electrons.

    values: a map with an `Anscombe` curve; pixels: float32 [H, W, C] in [0, 1] by it; known: bool [H, W] or None.
    """
    curve = values.curve
    assert isinstance(curve, Anscombe)
    light = local_light(curve.sensor.electrons(values.from_unit(pixels, np.float64)), known)
    variances = curve.variance(light)
    start, end = values.fitted_range
    return math.sqrt(mean(variances if known is None else variances[known])) / (end - start)
