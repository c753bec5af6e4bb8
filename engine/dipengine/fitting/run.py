"""Run one fit from start to delivered image: stopping, best state, interruption, history.

Built-in tasks on a CPU run as the core's native plan, which needs no PyTorch; everything else on autograd, here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dipengine.fitting import native_fit
from dipengine.fitting.device import Placement, threads
from dipengine.fitting.fit import Fit
from dipengine.fitting.native_fit import NativeFit
from dipengine.fitting.outcome import History, Outcome
from dipengine.fitting.progress import ProgressCallback, Report
from dipengine.fitting.stopping import StopRule, VarianceWatch
from dipengine.tasks.base import Problem, Recipe

TRUTH_INTERVAL = 10  # iterations between PSNRs, when the truth is given
RESIDUAL_INTERVAL = 5  # iterations between looks at the residual, when the noise is known


@dataclass(frozen=True)
class _Best:
    iteration: int
    image: np.ndarray
    weights: tuple  # an optimizer snapshot


def run(
    problem: Problem,
    recipe: Recipe,
    *,
    stop: str,
    seed: int,
    placement: Placement,
    measure: Callable[[np.ndarray], float] | None = None,
    progress: ProgressCallback | None = None,
    keep_on_interrupt: bool = False,
) -> tuple[Fit | NativeFit, Outcome]:
    """Fit `problem` by `recipe`; returns the fit (at the delivered state) and its outcome.

    `measure` gives the PSNR of a delivered image ([H, W, C] in [0, 1]) and is only listened to. With
    `keep_on_interrupt` a KeyboardInterrupt ends the fit and delivers what there is; otherwise it propagates. Raises FitError
    when the fit diverges beyond repair.
    """
    if native_fit.supports(problem, recipe, placement):
        planned = NativeFit(problem, recipe, seed, placement, stop)
        return planned, _run_native(planned, measure, progress, keep_on_interrupt)
    fit = Fit(problem, recipe, seed, placement)
    with threads(placement, torch_is_idle=fit.torch_is_idle):
        return fit, _run(fit, stop, measure, progress, keep_on_interrupt)


def _run_native(
    fit: NativeFit,
    measure: Callable[[np.ndarray], float] | None,
    progress: ProgressCallback | None,
    keep_on_interrupt: bool,
) -> Outcome:
    problem, ceiling = fit.problem, fit.recipe.iterations
    psnr: list[tuple[int, float]] = []

    def report(state) -> bool:
        iteration = state["iteration"]
        if measure is not None and (iteration % TRUTH_INTERVAL == 0 or iteration in (1, ceiling)):
            psnr.append((iteration, measure(problem.delivered(fit.average()))))
        if progress is None:
            return False
        latest = psnr[-1][1] if psnr else None
        return bool(progress(Report(iteration, ceiling, state["loss"], state["variance"], latest)))

    reason = "callback"
    start = time.perf_counter()
    try:
        fit.run(ceiling, report=report if measure or progress else None)
    except KeyboardInterrupt:
        if not keep_on_interrupt or fit.iteration == 0:
            raise
        reason = "interrupted"
    seconds = time.perf_counter() - start
    state = fit.progress()
    image, weights, delivered = fit.deliver()
    return Outcome(
        problem.delivered(image), weights, History(fit.losses, fit.variances, psnr), state["iteration"], delivered,
        state["reason"] or reason, state["rollbacks"], seconds,
    )


def _run(
    fit: Fit,
    stop: str,
    measure: Callable[[np.ndarray], float] | None,
    progress: ProgressCallback | None,
    keep_on_interrupt: bool,
) -> Outcome:
    recipe, problem = fit.recipe, fit.problem
    ceiling = recipe.iterations
    rule = StopRule.for_recipe(recipe) if stop == "auto" else None
    watch = VarianceWatch(rule) if rule is not None and not problem.knows_noise else None
    history = History()
    best: _Best | None = None
    at_noise = 0  # iteration at which the residual came down to the noise's; 0: not yet
    reason = "iterations"
    start = time.perf_counter()
    try:
        for iteration in range(1, ceiling + 1):
            step = fit.step()
            history.loss.append(step.loss)
            history.variance.append(step.variance)
            if measure is not None and (iteration % TRUTH_INTERVAL == 0 or iteration in (1, ceiling)):
                history.psnr.append((iteration, measure(problem.delivered(fit.average()))))
            if watch is not None and not step.rolled_back:
                watch.note(iteration, step.variance)
                if watch.worth_keeping(iteration):
                    best = _Best(iteration, fit.average(), fit.optimizer.snapshot())
                if watch.exhausted(iteration):
                    reason = "variance"
            elif rule is not None and not step.rolled_back:
                # Known noise needs no variance, whose early minima would stop a fit that has not come down to the noise.
                if not at_noise and _fits_to_the_noise(fit, iteration):
                    at_noise = iteration
                if at_noise and iteration >= at_noise + rule.lag:
                    reason = "discrepancy"
            if progress is not None:
                latest = history.psnr[-1][1] if history.psnr else None
                if progress(Report(iteration, ceiling, step.loss, step.variance, latest)):
                    reason = "callback"
            if reason != "iterations":
                break
    except KeyboardInterrupt:
        if not keep_on_interrupt or fit.iteration == 0:
            raise
        reason = "interrupted"
    seconds = time.perf_counter() - start
    if best is not None and best.iteration != watch.minimum + watch.rule.lag_after(watch.minimum):
        best = None  # a later minimum overtook it, and the run ended before that one's average was complete
    image, delivered = _deliver(fit, best)
    return Outcome(
        problem.delivered(image), fit.weights(), history, len(history.loss), delivered, reason, fit.guard.count, seconds
    )


def _fits_to_the_noise(fit: Fit, iteration: int) -> bool:
    """The discrepancy principle: True when the delivered image's mean squared residual is down to the noise's."""
    if iteration % RESIDUAL_INTERVAL:
        return False
    return fit.discrepancy() <= 1


def _deliver(fit: Fit, best: _Best | None) -> tuple[np.ndarray, int]:
    """The kept state's image and iteration, else the last one's; the fit's weights are left at that state."""
    if best is not None:
        fit.optimizer.restore(best.weights)
        return best.image, best.iteration
    if fit.recipe.average_decay is not None:
        return fit.average(), fit.iteration
    return fit.render(), fit.iteration
