"""Denoising: A is the identity. Unknown or Gaussian noise: squared error. A counting sensor: squared error of
variance-stabilised values, or the sensor's likelihood.

Recipe: Ulyanov, Vedaldi, Lempitsky, "Deep Image Prior" (CVPR 2018), section 3.1 and the authors' denoising notebook.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dipengine.errors import InputError
from dipengine.images import Image, ValueMap
from dipengine.noise.gaussian import checked_sigma, perturbation_for
from dipengine.noise.likelihood import SensorLikelihood
from dipengine.noise.stabilised import stabilised_map, stabilised_sigma
from dipengine.tasks.base import Problem, Recipe, Task, TaskData, TaskOption, hourglass_128
from dipengine.tasks.known import MASK_OPTIONS, known_pixels
from dipengine.tasks.noise_options import NOISE_OPTIONS, check_light, sensor_of

RECIPE = Recipe(hourglass_128(4, "bilinear"), iterations=1800, perturbation=1 / 30, average_decay=0.99)
DATA_TERMS = ("stabilised", "likelihood")


class Denoise(Task):
    name = "denoise"
    summary = "remove noise from an image (blind, or with a known standard deviation or sensor)"
    options = (
        *NOISE_OPTIONS,
        TaskOption(
            "data-term",
            "of poisson and poisson-gaussian noise. stabilised: squared error behind the generalised Anscombe transform; "
            "likelihood: the sensor's negative log-likelihood (default: stabilised)",
            str,
            choices=DATA_TERMS,
        ),
        *MASK_OPTIONS,
    )

    def value_map(
        self, image: Image, known: np.ndarray | None, value_range: tuple[float, float] | None, options: Mapping[str, Any]
    ) -> ValueMap:
        sensor = sensor_of(options)
        if sensor is None:
            return super().value_map(image, known, value_range, options)
        check_light(sensor, image.pixels, known)
        # Counts mean what they mean whatever integer holds them: the range is that of the image.
        values = ValueMap.for_image(image.pixels, known, value_range, data_units=True)
        return values if options.get("data_term") == "likelihood" else stabilised_map(values, sensor)

    def problem(
        self,
        data: TaskData,
        preset: str,
        *,
        sigma: float | None = None,
        noise: str | None = None,
        gain: float | None = None,
        offset: float | None = None,
        read_noise: float | None = None,
        data_term: str | None = None,
        mask: np.ndarray | None = None,
        invert_mask: bool = False,
    ) -> Problem:
        sensor = sensor_of(
            {"sigma": sigma, "noise": noise, "gain": gain, "offset": offset, "read_noise": read_noise}
        )
        if data_term not in (None, *DATA_TERMS):
            raise InputError(f"There is no data term {data_term!r}; choose {' or '.join(DATA_TERMS)}.")
        known = known_pixels(data.known, mask, invert_mask, data.pixels.shape[:2])
        problem = Problem(self.name, data.pixels, data.pixels.shape[:2], RECIPE, known=known)
        if sensor is not None:
            likelihood = data_term == "likelihood"
            return replace(
                problem,
                data_term=SensorLikelihood(sensor, data.values) if likelihood else None,
                sigma=None if likelihood else stabilised_sigma(data.values, data.pixels, known),
                parameters={"noise": noise, "data_term": data_term or "stabilised", **sensor.to_dict()},
            )
        if data_term is not None:
            raise InputError("data-term is for poisson and poisson-gaussian noise; name the noise, or leave it out.")
        unit = None if sigma is None else checked_sigma(sigma, data.values.span)
        return replace(
            problem,
            recipe=RECIPE if unit is None else replace(RECIPE, perturbation=perturbation_for(unit)),
            sigma=unit,
            parameters={"noise": None if unit is None else "gaussian", "sigma": sigma},
        )
