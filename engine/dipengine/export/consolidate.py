"""From a finished fit to weights that paint what was delivered, with the statistics that its norms are frozen at.

The delivered image is an average over iterations, as a rule, which no network outputs. A short fit with z held still and the
delivered image as its target makes the generator paint it; it continues the fit's own weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from dipengine.export.generator_file import FittedGenerator
from dipengine.fitting import metrics
from dipengine.fitting.device import place, require_torch
from dipengine.fitting.native_fit import NativeFit, supports
from dipengine.fitting.progress import ProgressCallback, Report
from dipengine.fitting.settings import Settings
from dipengine.generators.code import Code
from dipengine.tasks.base import Problem, Recipe

ENOUGH = 45.0  # dB between painted and delivered: nothing more to be done
CHUNK = 25  # iterations between looks
# Step sizes in turn, each with its most iterations: the last halvings take away what a large step leaves jittering.
SCHEDULE = ((0.003, 400), (0.001, 300), (0.0003, 300))
MOST_ITERATIONS = sum(most for _, most in SCHEDULE)


class Continued(Protocol):
    """A fit that is continued: `NativeFit`, or its twin on autograd."""

    losses: list[float]
    variances: list[float]

    def run(self, iterations: int) -> None: ...

    def render(self) -> np.ndarray: ...

    def weights(self) -> dict[str, np.ndarray]: ...

    def statistics(self) -> dict[str, np.ndarray]: ...

    def load_weights(self, weights: dict[str, np.ndarray]) -> None: ...


@dataclass(frozen=True)
class Consolidated:
    """Weights and statistics of a generator as it is to be frozen."""

    parameters: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]  # see export.frozen.fold
    psnr: float  # dB of the window that is delivered against the delivered image, peak 1
    iterations: int  # of consolidation


def consolidate(
    generator: FittedGenerator, *, enough: float = ENOUGH, threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Consolidated:
    """Fit on until the generator paints the delivered image with a PSNR of `enough` dB, or the schedule ends.

    progress: called after each look; its PSNR is the one against the delivered image. Networks that the native plan does not run
    (up kernels above 3) go on autograd, which needs PyTorch: DependencyError without it. Raises FitError where memory is short.
    """
    best, done = _look(_fit(generator, SCHEDULE[0][0], generator.parameters, threads), generator, 0), 0
    for step_size, most in SCHEDULE:
        if best.psnr >= enough:
            break
        fit = _fit(generator, step_size, best.parameters, threads)
        for _ in range(0, most, CHUNK):
            fit.run(CHUNK)
            done += CHUNK
            found = _look(fit, generator, done)
            if found.psnr > best.psnr:
                best = found
            if progress is not None:
                progress(Report(done, MOST_ITERATIONS, fit.losses[-1], fit.variances[-1], best.psnr))
            if best.psnr >= enough:
                break
    return replace(best, iterations=done)


def _fit(generator: FittedGenerator, step_size: float, parameters: dict[str, np.ndarray], threads: int | None) -> Continued:
    """A float32 fit of the delivered image, on the generator's whole canvas, that begins with these weights."""
    (top, left), (height, width) = generator.origin, generator.crop
    shape = (*generator.canvas, generator.architecture.output_channels)
    target, known = np.zeros(shape, np.float32), np.zeros(shape[:2], bool)
    target[top : top + height, left : left + width] = generator.delivered
    known[top : top + height, left : left + width] = True
    code = generator.code
    as_image = code.kind == "image" or (code.kind == "noise" and code.scale != Code().scale)
    recipe = Recipe(generator.architecture, code="image" if as_image else code.kind, learning_rate=step_size, perturbation=0.0,
                    iterations=1 << 31)
    problem = Problem("consolidate", target, generator.canvas, recipe, known=known,
                      guide=code.make(generator.canvas) if as_image else None)
    placement = place(Settings(device="cpu", precision="fp32", threads=threads, kernels=None))
    if supports(problem, recipe, placement):
        fit: Continued = NativeFit(problem, recipe, code.seed, placement, "fixed")
    else:
        require_torch()
        from dipengine.export.autograd import AutogradFit

        fit = AutogradFit(problem, recipe, code.seed, placement)
    fit.load_weights(parameters)
    return fit


def _look(fit: Continued, generator: FittedGenerator, iterations: int) -> Consolidated:
    (top, left), (height, width) = generator.origin, generator.crop
    painted = fit.render()[top : top + height, left : left + width]
    return Consolidated(fit.weights(), fit.statistics(), metrics.psnr(painted, generator.delivered, 1.0), iterations)
