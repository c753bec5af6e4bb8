"""Inpainting: A keeps the known pixels of a binary mask, the data term is the squared error over them.

Recipes: the authors' inpainting and restoration notebooks. Their perturbation of the weights in the large-hole recipe
has no effect in their code (it rebinds a local name) and is left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dipengine.errors import InputError
from dipengine.generators.architecture import Hourglass
from dipengine.images.namespaces import any_true, beside, mean
from dipengine.tasks.base import Problem, Recipe, Task, TaskData, TaskOption, hourglass_128
from dipengine.tasks.known import keeps_known, known_option

SCATTERED = "missing50"
RECIPES = {
    "text": Recipe(hourglass_128(128, "nearest"), iterations=6000, perturbation=0.03),
    "hole": Recipe(
        hourglass_128(0, "nearest", input_depth=2), code="meshgrid", iterations=5000, perturbation=0.03
    ),
    "large-hole": Recipe(
        Hourglass(
            input_depth=1,
            channels_down=(16, 32, 64, 128, 128, 128),
            channels_up=(16, 32, 64, 128, 128, 128),
            channels_skip=(0,) * 6,
            kernel_down=(5,) * 6,
            kernel_up=(3,) * 6,
            upsample=("nearest",) * 6,
            one_by_one_up=False,
        ),
        iterations=3000,
        perturbation=0.0,
    ),
    SCATTERED: Recipe(hourglass_128(4, "bilinear"), learning_rate=0.001, iterations=11000, perturbation=0.03),
    "missing98": Recipe(
        Hourglass(
            channels_down=(16, 32, 64, 128, 128),
            channels_up=(16, 32, 64, 128, 128),
            channels_skip=(0,) * 5,
            upsample=("bilinear",) * 5,
            downsample="average",
        ),
        iterations=1000,
        perturbation=0.0,
    ),
}


_HOLDING_OUT = ("text", SCATTERED)  # of what is missing in a whole region, scattered pixels tell nothing
HOLD_OUT = 0.1  # of the known pixels; one share for all, so that images and tiles can share a cohort


def _faster(made: Recipe, name: str) -> Recipe:
    """The recipe for presets that deliver an average and stop by themselves.

    With the average, the step size of all other recipes wins 0.1 to 1.2 dB over the authors' 0.001 for scattered pixels, at the best
    point of either run (six photographs of 128x128, 32 channels); and what is thin or scattered stops by pixels held out
    (fitting.held_out; bench/inpainting.py).
    """
    if name in _HOLDING_OUT:
        made = replace(made, hold_out=HOLD_OUT)
    return replace(made, learning_rate=0.01, iterations=6000) if name == SCATTERED else made


NOTHING_MISSING = "Nothing says which pixels are missing; give --mask, --random-missing, an alpha channel, or NaN in floats."


class Inpaint(Task):
    name = "inpaint"
    summary = "fill in missing pixels (white in the mask = known, black = missing)"
    options = (
        TaskOption("mask", "image of the input's size: white = known, black = missing", "mask"),
        TaskOption("invert-mask", "the mask is white where pixels are missing", bool, False),
        TaskOption(
            "random-missing",
            "drop this fraction of the pixels at random, between 0 and 1 (for trials and benchmarks)",
            float,
        ),
        TaskOption(
            "recipe",
            "text: thin overlays; hole: a region; large-hole: a big region; missing50, missing98: scattered pixels",
            str,
            SCATTERED,
            choices=tuple(RECIPES),
        ),
        known_option("known pixels are returned as they came"),
    )

    def problem(
        self,
        data: TaskData,
        preset: str,
        *,
        mask: np.ndarray | None = None,
        invert_mask: bool = False,
        random_missing: float | None = None,
        recipe: str = SCATTERED,
        known: str | None = None,
    ) -> Problem:
        if recipe not in RECIPES:
            raise InputError(f"There is no inpainting recipe {recipe!r}; choose one of {', '.join(RECIPES)}.")
        pixels_known, source = self._known(data, mask, invert_mask, random_missing)
        made = RECIPES[recipe]
        if preset != "paper":
            made = _faster(made, recipe)
        keep = keeps_known(known, preset)
        return Problem(
            self.name,
            data.pixels,
            data.pixels.shape[:2],
            made,
            known=pixels_known,
            keep_known=keep,
            fills_alpha=source == "alpha",
            parameters={
                "recipe": recipe,
                "mask": source,
                "random_missing": random_missing,
                "missing_fraction": 1 - mean(pixels_known),
                "known": "keep" if keep else "fit",
            },
        )

    def _known(self, data, mask, invert_mask, random_missing) -> tuple[Any, str]:
        """Where the data is known, and where that knowledge comes from."""
        shape = tuple(data.pixels.shape[:2])
        sources = []
        known = beside(np.ones(shape, bool), data.pixels)
        if data.known is not None:
            known &= data.known
            sources.append("missing values")
        if mask is not None:
            if tuple(mask.shape) != shape:
                raise InputError(
                    f"The mask is {mask.shape[1]}x{mask.shape[0]} and the image {shape[1]}x{shape[0]} pixels; "
                    f"they must be of one size."
                )
            known &= ~mask if invert_mask else mask
            sources.append("mask")
        if random_missing is not None:
            known &= beside(random_mask(shape, random_missing, data.seed), data.pixels)
            sources.append("random")
        if not sources and data.alpha is not None:
            known &= data.alpha >= 0.5
            sources.append("alpha")
        if not sources:
            raise InputError(NOTHING_MISSING)
        if not any_true(known):
            raise InputError("The mask leaves no pixel known; white means known, --invert-mask turns a mask around.")
        return known, "+".join(sources)


def random_mask(shape: tuple[int, int], missing: float, seed: int) -> np.ndarray:
    """A random mask, bool [H, W]: each pixel is missing with probability `missing` (Philox stream MASK)."""
    from dipengine.kernels import philox

    if not 0 <= missing < 1:
        raise InputError(f"random-missing is {missing:g}; it is a fraction of at least 0 and below 1.")
    return philox.uniform(seed, philox.MASK, 0, shape[0] * shape[1]).reshape(shape) >= missing
