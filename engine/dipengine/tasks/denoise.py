"""Denoising: A is the identity. Unknown or Gaussian noise: squared error. A counting sensor: its likelihood, or the squared
error of variance-stabilised values.

Recipe: Ulyanov, Vedaldi, Lempitsky, "Deep Image Prior" (CVPR 2018), section 3.1 and the authors' denoising notebook.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dipengine.errors import InputError
from dipengine.images import Image, ValueMap
from dipengine.noise.gaussian import perturbation_for
from dipengine.noise.light import relative_noise, relative_noise_of_parts
from dipengine.noise.likelihood import SensorLikelihood
from dipengine.noise.ranges import light_range
from dipengine.noise.stabilised import stabilised_map, stabilised_sigma
from dipengine.tasks.base import Problem, Recipe, Task, TaskData, TaskOption, hourglass_128
from dipengine.tasks.known import MASK_OPTIONS, known_pixels
from dipengine.tasks.noise_options import NOISE_OPTIONS, check_light, gaussian_of, sensor_of

RECIPE = Recipe(hourglass_128(4, "bilinear"), iterations=1800, perturbation=1 / 30, average_decay=0.99)
# The first is the default: as near to the truth as the other within 0.3 dB either way, and nearer in the mean of what is bright
# (bench/sensor.py); it also leaves the image linear, so that A may be more than the identity.
DATA_TERMS = ("likelihood", "stabilised")


def estimates_noise(preset: str) -> bool:
    """Whether white noise that nobody has told of is estimated: the published recipe knows no such thing."""
    return preset != "paper"


class Denoise(Task):
    name = "denoise"
    summary = "remove noise from an image (found by itself, or of a known standard deviation or sensor)"
    options = (
        *NOISE_OPTIONS,
        TaskOption(
            "data-term",
            "of poisson and poisson-gaussian noise. likelihood: the sensor's negative log-likelihood; stabilised: squared "
            "error behind the generalised Anscombe transform (default: likelihood)",
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
        values = light_range(image.pixels, known, value_range, sensor)
        return stabilised_map(values, sensor) if options.get("data_term") == "stabilised" else values

    def recipe_of_whole(
        self, parts: Iterable[tuple[np.ndarray, np.ndarray | None, slice]], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        sensor = sensor_of(options)
        if sensor is None:
            return {}
        electrons = ((sensor.electrons(pixels.astype(np.float64)), known, rows) for pixels, known, rows in parts)
        return {"perturbation": perturbation_for(relative_noise_of_parts(sensor, electrons))}

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
            stabilised = data_term == "stabilised"
            electrons = sensor.electrons(data.values.from_unit(data.pixels, np.float64))
            return replace(
                problem,
                recipe=replace(RECIPE, perturbation=perturbation_for(relative_noise(sensor, electrons, known))),
                data_term=None if stabilised else SensorLikelihood(sensor, data.values),
                sigma=stabilised_sigma(data.values, data.pixels, known) if stabilised else None,
                parameters={"noise": noise, "data_term": data_term or DATA_TERMS[0], **sensor.to_dict()},
            )
        if data_term is not None:
            raise InputError("data-term is for poisson and poisson-gaussian noise; name the noise, or leave it out.")
        unit, described = gaussian_of(data, known, sigma, noise, by_itself=estimates_noise(preset))
        recipe = RECIPE if unit is None else replace(RECIPE, perturbation=perturbation_for(unit))
        return replace(problem, recipe=recipe, sigma=unit, parameters=described)
