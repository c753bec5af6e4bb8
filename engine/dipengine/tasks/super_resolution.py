"""Super-resolution: A blurs and keeps every factor-th pixel; the data term is the squared error on the small image, which the delivered
image agrees with (`back_projection`).

Recipe: the authors' super-resolution notebook (x4: 2000 iterations, perturbation 0.03; x8: 4000, 0.05). Twice the size keeps its
bilinear upsampling under every preset: with nearest the generator soon paints what the small image does not see, and loses up to
2.5 dB by it; from four times on both are alike (bench/agreement.py).
"""

from __future__ import annotations

from dataclasses import replace

from dipengine.errors import InputError
from dipengine.tasks.back_projection import BackProjection
from dipengine.tasks.base import Problem, Recipe, Task, TaskData, TaskOption, hourglass_128
from dipengine.tasks.downsampling import KERNELS, Downsampling
from dipengine.tasks.known import keeps_known, known_option

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
        known_option("made small again, what is delivered is the input"),
    )

    def problem(
        self, data: TaskData, preset: str, *, factor: int, downsampler: str = "lanczos2", known: str | None = None
    ) -> Problem:
        if factor not in FACTORS:
            raise InputError(f"factor is {factor}; it takes 2, 3, 4 or 8.")
        operator, keep = Downsampling(factor, downsampler), keeps_known(known, preset)
        height, width = data.pixels.shape[:2]
        recipe = replace(_RECIPE, own_upsampling=factor == 2)
        if factor == 8:
            recipe = replace(recipe, iterations=4000, perturbation=0.05)
        return Problem(
            self.name,
            data.pixels,
            (height * factor, width * factor),
            recipe,
            known=data.known,
            operator=operator,
            scale=factor,
            agreement=BackProjection(operator, data.pixels, data.known, bounded=data.values.of_integers) if keep else None,
            parameters={"factor": factor, "known": "keep" if keep else "fit", **operator.to_dict()},
        )
