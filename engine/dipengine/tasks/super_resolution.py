"""Super-resolution: A blurs and keeps every factor-th pixel; the data term is the squared error on the small image.

Recipe: the authors' super-resolution notebook (x4: 2000 iterations, perturbation 0.03; x8: 4000, 0.05).
"""

from __future__ import annotations

from dataclasses import replace

from dipengine.errors import InputError
from dipengine.tasks.base import Problem, Recipe, Task, TaskData, TaskOption, hourglass_128
from dipengine.tasks.downsampling import KERNELS, Downsampling

FACTORS = (2, 3, 4, 8)
_RECIPE = Recipe(hourglass_128(4, "bilinear"), iterations=2000, perturbation=0.03)


class SuperResolution(Task):
    name = "superres"
    summary = "enlarge an image (x2, x3, x4, x8)"
    options = (
        TaskOption("factor", "how many times larger: 2, 3, 4 or 8", int, required=True),
        TaskOption(
            "downsampler",
            "how the small image came about: the filter before keeping every factor-th pixel",
            str,
            "lanczos2",
            choices=tuple(KERNELS),
        ),
    )

    def problem(self, data: TaskData, preset: str, *, factor: int, downsampler: str = "lanczos2") -> Problem:
        if factor not in FACTORS:
            raise InputError(f"factor is {factor}; it takes 2, 3, 4 or 8.")
        operator = Downsampling(factor, downsampler)
        height, width = data.pixels.shape[:2]
        recipe = replace(_RECIPE, iterations=4000, perturbation=0.05) if factor == 8 else _RECIPE
        return Problem(
            self.name,
            data.pixels,
            (height * factor, width * factor),
            recipe,
            known=data.known,
            operator=operator,
            scale=factor,
            parameters={"factor": factor, **operator.to_dict()},
        )
