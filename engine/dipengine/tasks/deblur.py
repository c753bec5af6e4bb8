"""Deblurring with a known kernel: A is the convolution over an image larger than the frame (`blur`); the data term is the
squared error, or the likelihood of a counting sensor.

The paper has no recipe for it; this is its super-resolution recipe (the other operator that takes fine detail away) without
the perturbation of z, which holds fine detail back: 0, 0.005 and 0.03 gave 28.1, 27.7 and 27.0 dB after 2000 iterations
(bench/deblur.py motion --channels 32).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dipengine.errors import InputError
from dipengine.images import Image, ValueMap
from dipengine.noise.likelihood import SensorLikelihood
from dipengine.noise.ranges import light_range
from dipengine.tasks.base import Problem, Recipe, Task, TaskData, TaskOption, hourglass_128
from dipengine.tasks.blur import Blur
from dipengine.tasks.known import MASK_OPTIONS, known_pixels
from dipengine.tasks.noise_options import NOISE_OPTIONS, check_light, gaussian_of, sensor_of

RECIPE = Recipe(hourglass_128(4, "bilinear"), iterations=4000, perturbation=0.0)
HEADROOM = 0.5  # of the blurred image's range: what is sharp is brighter and darker than its blur


class Deblur(Task):
    name = "deblur"
    summary = "undo a known blur"
    options = (
        TaskOption(
            "kernel",
            "the blur: a grey image, a .npy array or a matrix as text (.txt, .csv); it is scaled to sum 1",
            "kernel",
            required=True,
        ),
        *NOISE_OPTIONS,
        *MASK_OPTIONS,
    )

    def value_map(
        self, image: Image, known: np.ndarray | None, value_range: tuple[float, float] | None, options: Mapping[str, Any]
    ) -> ValueMap:
        sensor = sensor_of(options)
        if sensor is None:
            values = super().value_map(image, known, value_range, options)
        else:
            check_light(sensor, image.pixels, known)
            values = light_range(image.pixels, known, value_range, sensor)
        counts = sensor is not None or image.in_data_units or not values.is_whole(image.dtype_name)
        if value_range is not None or not counts:
            return values
        room = HEADROOM * values.span
        # The sensor's lower end is where light ends, for sharp pixels too.
        return ValueMap(values.low - (room if sensor is None else 0), values.high + room)

    def problem(
        self,
        data: TaskData,
        preset: str,
        *,
        kernel: np.ndarray,
        sigma: float | None = None,
        noise: str | None = None,
        gain: float | None = None,
        offset: float | None = None,
        read_noise: float | None = None,
        mask: np.ndarray | None = None,
        invert_mask: bool = False,
    ) -> Problem:
        height, width, _ = data.pixels.shape
        if kernel.shape[0] > height or kernel.shape[1] > width:
            raise InputError(
                f"The kernel is {kernel.shape[1]}x{kernel.shape[0]} and the image {width}x{height} pixels; "
                f"give a kernel no larger than the image."
            )
        sensor = sensor_of({"sigma": sigma, "noise": noise, "gain": gain, "offset": offset, "read_noise": read_noise})
        blur = Blur(kernel)
        known = known_pixels(data.known, mask, invert_mask, (height, width))
        unit = None
        if sensor is None:
            unit, described = gaussian_of(data, known, sigma, noise)
        else:
            described = {"noise": noise, "data_term": "likelihood", **sensor.to_dict()}
        return Problem(
            self.name,
            data.pixels,
            (height + blur.margins[0], width + blur.margins[1]),
            RECIPE,
            known=known,
            operator=blur,
            origin=blur.origin,
            delivered_shape=(height, width),
            data_term=None if sensor is None else SensorLikelihood(sensor, data.values),
            sigma=unit,
            parameters={**described, **blur.to_dict()},
        )
