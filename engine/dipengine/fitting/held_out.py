"""Known pixels that are kept out of a fit: where the delivered average is nearest to them, it has learnt what there is to be learnt.

Where x0 has no noise, as in inpainting, neither the outputs' variance nor a residual says when a generator begins to invent: it
goes on fitting the known pixels, and what it paints between them gets worse. The pixels held out are such pixels between, whose
values are known. When their error in the delivered average has not been within 5 % of its least for 200 iterations, the best state is
taken up again and goes on for 150 iterations with all pixels: in these it learns what was kept from it (0.1 to 0.5 dB in three
photographs of 128x128, half of whose pixels were missing), which leaves it as good as a fit that saw all pixels all the time and was
stopped at its best. A run that comes to its ceiling before does the same at its end.

A warm start whose first fit ended with the same pixels of the same image has seen them already, and may be stopped sooner for it.

The share is the recipe's (`Recipe.hold_out`), the draw the seed's: pixel i, in rows, is held out where element i of the Philox
sequence HELD lies below the share. The core does the same (csrc/fit/fit.cpp). What the rule costs and wins: bench/inpainting.py.
"""

from __future__ import annotations

import numpy as np

from dipengine.images.namespaces import on_host
from dipengine.kernels import philox
from dipengine.tasks.base import Problem, Recipe

LEAST = 64  # pixels; by fewer a fit is not judged, but by the outputs' variance


def share(problem: Problem, recipe: Recipe, stop: str) -> float:
    """Of the known pixels, those that a fit holds out: the recipe's where it stops by itself and knows no noise, else 0."""
    return recipe.hold_out if stop == "auto" and not problem.knows_noise else 0.0


def draw(problem: Problem, recipe: Recipe, stop: str, seed: int) -> np.ndarray | None:
    """The pixels held out, bool [h, w]; None where none are, and where that would leave too few of them or none to be fitted."""
    part = share(problem, recipe, stop)
    if part == 0:
        return None
    shape = tuple(problem.target.shape[:2])
    known = np.ones(shape, bool) if problem.known is None else on_host(problem.known)
    drawn = philox.uniform(seed, philox.HELD, 0, shape[0] * shape[1]).reshape(shape).astype(np.float64) < part
    held = known & drawn
    return held if held.sum() >= LEAST and (known & ~held).any() else None
