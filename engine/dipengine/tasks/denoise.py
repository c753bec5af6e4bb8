"""Denoising: A is the identity, the data term the squared error (blind, or Gaussian noise of known sigma).

Recipe: Ulyanov, Vedaldi, Lempitsky, "Deep Image Prior" (CVPR 2018), section 3.1 and the authors' denoising notebook.
"""

from __future__ import annotations

from dataclasses import replace

from dipengine.noise.gaussian import checked_sigma, perturbation_for
from dipengine.tasks.base import Problem, Recipe, Task, TaskData, TaskOption, hourglass_128

RECIPE = Recipe(hourglass_128(4, "bilinear"), iterations=1800, perturbation=1 / 30, average_decay=0.99)


class Denoise(Task):
    name = "denoise"
    summary = "remove noise from an image (blind, or with a known standard deviation)"
    options = (
        TaskOption(
            "sigma",
            "standard deviation of Gaussian noise in the image's own units (0..255 for 8 bits, 0..65535 for 16 bits, "
            "data units for float); without it the noise is taken as unknown",
            float,
        ),
    )

    def problem(self, data: TaskData, preset: str, *, sigma: float | None = None) -> Problem:
        recipe = RECIPE
        unit = None
        if sigma is not None:
            unit = checked_sigma(sigma, data.values.span)
            recipe = replace(recipe, perturbation=perturbation_for(unit))
        return Problem(
            self.name,
            data.pixels,
            data.pixels.shape[:2],
            recipe,
            known=data.known,
            sigma=unit,
            parameters={"sigma": sigma},
        )
