"""Deblurring with a known kernel: A is the convolution over an image larger than the frame (`blur`); the data term is the
squared error, or the likelihood of a counting sensor.

The paper has no recipe for it; this is its super-resolution recipe (the other operator that takes fine detail away), with
the changes that were measured in bench/deblur.py.
"""

from __future__ import annotations

import numpy as np

from dipengine.errors import InputError
from dipengine.noise.gaussian import checked_sigma
from dipengine.noise.likelihood import SensorLikelihood
from dipengine.tasks.base import Problem, Recipe, Task, TaskData, TaskOption, hourglass_128
from dipengine.tasks.blur import Blur
from dipengine.tasks.known import MASK_OPTIONS, known_pixels
from dipengine.tasks.noise_options import NOISE_OPTIONS, check_light, sensor_of

RECIPE = Recipe(hourglass_128(4, "bilinear"), iterations=4000, perturbation=0.03)


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
        if sensor is None:
            described = {"noise": None if sigma is None else "gaussian", "sigma": sigma}
        else:
            check_light(sensor, data.values.from_unit(data.pixels, np.float64), known)
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
            sigma=None if sigma is None else checked_sigma(sigma, data.values.span),
            parameters={**described, **blur.to_dict()},
        )
