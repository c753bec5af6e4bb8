"""The loop around `Fit`: stopping, best state, history. It can be saved after any iteration and continued with the same bits.

The core's native plan has a loop of its own (csrc/fit/fit.cpp), of which this is the twin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dipengine.errors import InputError
from dipengine.fitting import held_out
from dipengine.fitting.device import Placement, threads
from dipengine.fitting.fit import Fit
from dipengine.fitting.stopping import RESIDUAL_INTERVAL, StopRule, VarianceWatch
from dipengine.images.namespaces import beside, on_host
from dipengine.tasks.base import Problem, Recipe

if TYPE_CHECKING:
    from dipengine.fitting.warm_start import WarmStart


@dataclass(frozen=True)
class _Best:
    iteration: int
    image: Any  # as `Fit.average` gives it
    parameters: Any  # a copy of the optimiser's flat parameters


class AutogradLoop:
    """One fit on autograd, some iterations at a time; `NativeFit` is its twin in the core."""

    def __init__(
        self, problem: Problem, recipe: Recipe, seed: int, placement: Placement, stop: str, init: WarmStart | None = None
    ) -> None:
        self.fit = Fit(problem, recipe, seed, placement, init, held_out.draw(problem, recipe, stop, seed))
        self.losses: list[float] = []
        self.variances: list[float] = []
        self.reason = ""  # why it stopped: "iterations", "variance", "discrepancy", "held-out"; empty while it has not
        self._placement = placement
        self._rule = StopRule.for_recipe(self.fit.recipe, warm_start=init is not None) if stop == "auto" else None
        if self._rule is not None and self.fit.held_out:
            self._rule = self._rule.with_pixels_held_out()
        self._holds_out = self.fit.held_out > 0
        self._watch = VarianceWatch(self._rule) if self._rule is not None and not problem.knows_noise else None
        self._best: _Best | None = None
        self._shown = 0  # iteration behind which the fit sees the pixels that it held out; 0: not yet
        self._at_noise = 0  # iteration at which the residual came down to the noise's; 0: not yet
        self.whole = True  # False within an iteration, and after one that was broken off

    @property
    def iteration(self) -> int:
        """Iterations run."""
        return len(self.losses)

    @property
    def rollbacks(self) -> int:
        return self.fit.guard.count

    def set_threads(self, count: int) -> None:
        """CPU threads from the next run on. PyTorch's own operators promise the same bits at one thread count alone."""
        self._placement = replace(self._placement, threads=count)

    def run(self, iterations: int, report: Callable[[dict[str, Any]], bool] | None = None) -> None:
        """Up to `iterations` more, fewer where the fit stops by itself or `report` (given iteration, loss, variance) returns True."""
        with self._threads():
            for _ in range(iterations):
                if self.reason:
                    return
                self._step()
                state = {"iteration": self.iteration, "loss": self.losses[-1], "variance": self.variances[-1]}
                if report is not None and report(state):
                    return

    def _step(self) -> None:
        self.whole = False
        step = self.fit.step()
        self.losses.append(step.loss)
        self.variances.append(step.variance)
        if self._rule is not None and not step.rolled_back:
            self._look(step.variance)
        if not self.reason and self.iteration >= self.fit.recipe.iterations:
            self.reason = "iterations"
        self.whole = True

    def _look(self, variance: float) -> None:
        iteration, watch, ceiling = self.iteration, self._watch, self.fit.recipe.iterations
        if self._shown:
            if self._shown + self._rule.shown_for <= iteration < ceiling:
                self.reason = "held-out"
        elif watch is not None:
            held = self._holds_out
            if not held or iteration % RESIDUAL_INTERVAL == 0:
                watch.note(iteration, self.fit.residual() if held else variance)
            if watch.worth_keeping(iteration):
                self._best = _Best(iteration, self.fit.average(), self.fit.optimizer.parameters.clone())
            over = watch.exhausted(iteration)
            if held and (over or iteration >= ceiling - self._rule.shown_for):
                self._show()
            elif over:
                self.reason = "variance"
        else:
            # Known noise needs no variance, whose early minima would stop a fit that has not come down to the noise.
            if not self._at_noise and iteration % RESIDUAL_INTERVAL == 0 and self.fit.discrepancy() <= 1:
                self._at_noise = iteration
            if self._at_noise and iteration >= self._at_noise + self._rule.lag:
                self.reason = "discrepancy"

    def _show(self) -> None:
        """The fit goes on from its best state with all pixels; one that has none (at its ceiling, or rolled back when it was to be
        kept) goes on as it is."""
        if self._delivers_best:
            self.fit.optimizer.parameters.copy_(self._best.parameters)
            self.fit.set_average(self._best.image)
        self.fit.show_held_out()
        self.fit.guard.forget_level()
        self._shown, self._best = self.iteration, None

    @property
    def _delivers_best(self) -> bool:
        """A later minimum may have overtaken the kept state, and the run ended before that one had settled."""
        best = self._best
        return best is not None and best.iteration == self._watch.minimum + self._rule.settling

    def deliver(self) -> tuple[Any, dict[str, np.ndarray], int]:
        """The kept state's image, weights and iteration, else the last one's; the fit goes on as if nothing had been asked."""
        fit, best = self.fit, self._best
        with self._threads():
            if self._delivers_best:
                current = fit.optimizer.parameters.clone()
                fit.optimizer.parameters.copy_(best.parameters)
                weights = fit.weights()
                fit.optimizer.parameters.copy_(current)
                return best.image, weights, best.iteration
            image = fit.average() if fit.recipe.average_decay is not None else fit.render()
            return image, fit.weights(), self.iteration

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All of the fit but its weights: arrays and JSON-able numbers. Raises InputError after a broken-off iteration."""
        from dipengine.fitting import fit_state

        if not self.whole:
            raise InputError("The fit was broken off within an iteration; continue from its last checkpoint.")
        tensors, numbers = fit_state.save(self.fit)
        if self._best is not None:
            tensors["best/parameters"] = self._best.parameters.cpu().numpy()
            tensors["best/image"] = on_host(self._best.image)
        numbers["reason"] = self.reason
        numbers["at_noise"] = self._at_noise
        numbers["shown"] = self._shown
        numbers["best_iteration"] = self._best.iteration if self._best is not None else 0
        numbers["watch"] = self._watch.state() if self._watch is not None else None
        return tensors, numbers

    def unpack(
        self, weights: dict[str, np.ndarray], tensors: Mapping[str, np.ndarray], numbers: Mapping[str, Any], iteration: int
    ) -> None:
        """Go on from a packed state of so many iterations, whose history the caller fills in.

        Raises KeyError, TypeError or ValueError, with the fit as it was, for parts that are none.
        """
        from dipengine.fitting import fit_state

        fit, best = self.fit, None
        best_iteration, at_noise, reason = int(numbers["best_iteration"]), int(numbers["at_noise"]), str(numbers["reason"])
        shown = int(numbers["shown"])
        if numbers["iteration"] != iteration:
            raise ValueError(f"it is of iteration {numbers['iteration']}, not {iteration}")
        if best_iteration:
            image = (*fit.problem.output_shape, fit.problem.channels)
            kept = fit_state.flat(fit, tensors["best/parameters"])
            best = _Best(best_iteration, beside(_shaped(tensors["best/image"], image), fit.problem.target), kept)
        watch = self._watch
        if watch is not None:
            watch = VarianceWatch(watch.rule)
            watch.load_state(numbers["watch"])
        fit_state.load(fit, weights, tensors, numbers)
        fit.show_held_out(shown > 0)
        self._best, self._watch, self._at_noise, self.reason, self.whole = best, watch, at_noise, reason, True
        self._shown = shown

    def _threads(self):
        return threads(self._placement, torch_is_idle=self.fit.torch_is_idle)


def _shaped(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape or array.dtype != np.float32:
        raise ValueError(f"an image is {array.dtype} {array.shape}, expected float32 {shape}")
    return array
