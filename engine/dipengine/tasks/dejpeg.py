"""JPEG artefacts: fitted as noise of unknown kind, by a slim generator whose prior removes blocks before it learns them.

Recipe: the authors' restoration of `snail.jpg` (channels 8 to 128, z of depth 3), for 2400 iterations. Where the steps are known that
the file's coefficients were rounded to, the delivered image is brought within them (`quantisation`), and the fit ends much sooner
(bench/agreement.py): at 250 to 1000 iterations the delivered image was at its best, and little changed around it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from dipengine.generators.architecture import Hourglass
from dipengine.images.jpeg_coding import JpegCoding
from dipengine.tasks import quantisation
from dipengine.tasks.base import Problem, Recipe, Task, TaskData, TaskOption
from dipengine.tasks.known import keeps_known, known_option

RECIPE = Recipe(
    Hourglass(
        input_depth=3,
        channels_down=(8, 16, 32, 64, 128),
        channels_up=(8, 16, 32, 64, 128),
        channels_skip=(0, 0, 0, 4, 4),
        upsample=("bilinear",) * 5,
    ),
    iterations=2400,
    perturbation=1 / 30,
    average_decay=0.99,
)
# Where the steps are known: iterations for each pixel of the side of a square of the canvas's area (so that images of one canvas and
# alike in quality can share a cohort), for this many pixels at most; fewer the coarser the steps are, of which the one in the middle of
# the low frequencies tells.
_ITERATIONS_PER_PIXEL, _MOST_PIXELS = 3.0, 240
_COARSE, _FINE = (30, 0.72), (8, 1.3)  # steps from and up to which the number is multiplied
_WHOLE = 0.0, 255.0  # levels that 0 and 1 stand for


class Dejpeg(Task):
    name = "dejpeg"
    summary = "remove JPEG artefacts"
    options = (
        known_option(
            "every coefficient of the JPEG is kept near the multiple of its step that the file holds, where file or pixels tell the steps"
        ),
    )

    def problem(self, data: TaskData, preset: str, *, known: str | None = None) -> Problem:
        shape = tuple(data.pixels.shape[:2])
        coding = _coding(data) if keeps_known(known, preset) else None
        recipe, agreement = RECIPE, None
        if coding is not None:
            agreement = quantisation.Quantisation(data.pixels, coding, data.known)
            recipe = replace(recipe, iterations=_iterations(shape, coding), stop="fixed")
        return Problem(
            self.name, data.pixels, shape, recipe, known=data.known, agreement=agreement,
            parameters={"known": "fit" if agreement is None else "keep", **({} if coding is None else {"jpeg": coding.to_dict()})},
        )


def _iterations(shape: tuple[int, int], coding: JpegCoding) -> int:
    side = min(math.sqrt(math.prod(RECIPE.generator.canvas(*shape))), _MOST_PIXELS)
    step = coding.steps[0][1][1]
    share = _COARSE[1] if step >= _COARSE[0] else _FINE[1] if step <= _FINE[0] else 1.0
    return round(_ITERATIONS_PER_PIXEL * side * share)


def _coding(data: TaskData) -> JpegCoding | None:
    """What the image shows of it."""
    if (data.values.low, data.values.high) != _WHOLE or data.values.curve is not None:
        return None
    return coding_of(data.pixels, data.jpeg)


def coding_of(pixels: Any, told: JpegCoding | None) -> JpegCoding | None:
    """The steps that an image shows: those of its file, or those found in its pixels; None where it shows none. pixels: float32
    [H, W, C], 0 to 1 for 8 bits."""
    if told is None:
        return quantisation.found_in(pixels)
    if not told.certain:
        return quantisation.checked(pixels, told)
    return told if told.steps[0] else None
