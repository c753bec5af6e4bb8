"""One fit from start to delivered image: some iterations at a time, saved and continued at will, measured on the way.

Built-in tasks on a CPU run as the core's native plan, which needs no PyTorch; everything else on autograd. The same settings and
seed give the same bits however the iterations are dealt out, also where a fit is saved and continued in another process.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dipengine.errors import FitError, InputError
from dipengine.fitting import identity, native_fit
from dipengine.fitting.autograd_loop import AutogradLoop
from dipengine.fitting.device import Placement, memory_errors
from dipengine.fitting.fit import Fit
from dipengine.fitting.native_fit import NativeFit
from dipengine.fitting.outcome import History, Outcome
from dipengine.fitting.progress import ProgressCallback, Report
from dipengine.tasks.base import Problem, Recipe

if TYPE_CHECKING:
    from dipengine.fitting.native_cohort import NativeCohort
    from dipengine.fitting.warm_start import WarmStart

TRUTH_INTERVAL = 10  # iterations between PSNRs, when the truth is given
_WEIGHTS = "parameters/"


class Loop(Protocol):
    """What a run asks of its path: `NativeFit`, `AutogradLoop`."""

    losses: list[float]
    variances: list[float]
    iteration: int
    reason: str  # why it stopped by itself; empty while it has not
    rollbacks: int
    whole: bool  # False within an iteration, and after one that was broken off

    def run(self, iterations: int, report: Callable[[dict[str, Any]], bool] | None = None) -> None: ...

    def set_threads(self, count: int) -> None: ...

    def deliver(self) -> tuple[np.ndarray, dict[str, np.ndarray], int]: ...

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...

    def unpack(
        self, weights: dict[str, np.ndarray], tensors: Mapping[str, np.ndarray], numbers: Mapping[str, Any], iteration: int
    ) -> None: ...


class FitRun:
    """A fit that is advanced, saved and continued.

    fit: the state itself. ceiling: the most iterations it may run. stop_reason: empty while it has not finished.
    """

    def __init__(
        self,
        problem: Problem,
        recipe: Recipe,
        *,
        stop: str,
        seed: int,
        placement: Placement,
        measure: Callable[[np.ndarray], float] | None = None,
        init: WarmStart | None = None,
        cohort: NativeCohort | None = None,
    ) -> None:
        """Take the memory and the initial weights; nothing is run.

        stop: "auto" or "fixed". measure: gives the PSNR of a delivered image ([H, W, C] in [0, 1]) and is only listened to.
        init: the weights to begin with, in place of random ones. cohort: in a slot of which the fit runs, to be freed by
        `fit.close()`; without it the fit has memory of its own. Raises FitError where memory is short, InputError where `init` is
        of another network and where the cohort does not take the image.
        """
        self.problem = problem
        self.stop = stop
        self.seed = seed
        self.placement = placement
        self.init = init
        self.seconds = 0.0  # spent in iterations, of earlier processes, too
        self.resumed_at: int | None = None  # the iteration that the last `restore` brought
        self._measure = measure
        self._psnr: list[tuple[int, float]] = []
        self._called_off = False
        with memory_errors():
            if cohort is not None:
                self.fit: Fit | NativeFit = cohort.open(problem, recipe, seed, stop, init, placement=placement)
                self._loop: Loop = self.fit
            elif native_fit.supports(problem, recipe, placement):
                self.fit = NativeFit(problem, recipe, seed, placement, stop, init)
                self._loop = self.fit
            else:
                self._loop = AutogradLoop(problem, recipe, seed, placement, stop, init)
                self.fit = self._loop.fit
        self.ceiling = self.fit.recipe.iterations

    @property
    def iteration(self) -> int:
        """Iterations run."""
        return self._loop.iteration

    @property
    def stop_reason(self) -> str:
        """ "iterations", "variance", "discrepancy", "held-out" or "callback"; empty while the fit has not finished."""
        return self._loop.reason or ("callback" if self._called_off else "")

    @property
    def finished(self) -> bool:
        return bool(self.stop_reason)

    def advance(self, iterations: int, progress: ProgressCallback | None = None) -> bool:
        """Up to `iterations` more; True when the fit has finished, by itself or because `progress` returned True.

        Raises FitError when the fit diverges beyond repair or memory runs out. A KeyboardInterrupt comes through, and the
        fit can be delivered after it.
        """
        if self.finished:
            return True
        start = time.perf_counter()
        report = self._reporter(progress)
        try:
            with memory_errors():
                self._loop.run(min(iterations, self.ceiling - self.iteration), report)
        finally:
            self.seconds += time.perf_counter() - start
        return self.finished

    def _reporter(self, progress: ProgressCallback | None) -> Callable[[Mapping[str, Any]], bool] | None:
        return None if self._measure is None and progress is None else functools.partial(self._report, progress)

    def _report(self, progress: ProgressCallback | None, state: Mapping[str, Any]) -> bool:
        iteration = state["iteration"]
        if self._measure is not None and (iteration % TRUTH_INTERVAL == 0 or iteration in (1, self.ceiling)):
            self._psnr.append((iteration, self._measure(self.problem.delivered(self.fit.average()))))
        if progress is None:
            return False
        latest = self._psnr[-1][1] if self._psnr else None
        self._called_off = bool(progress(Report(iteration, self.ceiling, state["loss"], state["variance"], latest)))
        return self._called_off

    def set_threads(self, count: int) -> None:
        """CPU threads from the next `advance` on. The native path's bits do not depend on them."""
        with memory_errors():
            self._loop.set_threads(count)

    def outcome(self, reason_if_unfinished: str = "interrupted") -> Outcome:
        """What the fit delivers as it stands; it can be advanced further afterwards. At least one iteration must have run."""
        loop = self._loop
        with memory_errors():
            image, weights, delivered = loop.deliver()
        history = History(list(loop.losses), list(loop.variances), list(self._psnr))
        return Outcome(
            self.problem.delivered(image), weights, history, len(loop.losses), delivered,
            self.stop_reason or reason_if_unfinished, loop.rollbacks, self.seconds,
        )

    # ---- saving ------------------------------------------------------------------------------------------------------

    @property
    def can_be_saved(self) -> bool:
        """False where a KeyboardInterrupt broke off an iteration (the native plan ends or undoes it)."""
        return self._loop.whole

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All of the fit, between two iterations: arrays by name and JSON-able metadata.

        `parameters/<name>`: the current weights (float32); `losses`, `variances`: float64 [iterations]; `psnr`: float64
        [n, 2], iteration and dB; the others are the path's own. Raises InputError after an iteration that was broken off.
        """
        tensors, numbers = self._loop.pack()
        tensors |= {_WEIGHTS + name: value for name, value in self.fit.weights().items()}
        tensors["losses"] = np.array(self._loop.losses, np.float64)
        tensors["variances"] = np.array(self._loop.variances, np.float64)
        tensors["psnr"] = np.array(self._psnr, np.float64).reshape(-1, 2)
        return tensors, {
            **self._identity,
            "iteration": self.iteration,
            "seconds": self.seconds,
            "stop_reason": self.stop_reason,
            "generator": self.fit.recipe.generator.to_dict(),
            "code": self.fit.code.to_dict(),
            "canvas": list(self.fit.canvas),
            "numbers": numbers,
        }

    def restore(self, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
        """Go on from a saved state, with the same bits as if the fit had never been left.

        Raises InputError in one sentence, with the fit as it was, for a state of another image or other settings, of another
        build, instruction set, kind of device or precision, and for a damaged one.
        """
        if metadata.get("settings") != self._identity["settings"]:
            raise InputError("The saved fit is of another image or other parameters; repeat those that it was started with, or "
                             "start anew.")
        identity.check_same_place(metadata.get("where") or {}, self._identity["where"])
        try:
            self._restore(tensors, metadata)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"The saved fit is damaged ({error}); load another copy, or start anew.") from error

    def _restore(self, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
        loop, iteration, seconds = self._loop, int(metadata["iteration"]), float(metadata["seconds"])
        losses, variances, psnr = (np.asarray(tensors[name], np.float64) for name in ("losses", "variances", "psnr"))
        if losses.shape != (iteration,) or variances.shape != (iteration,) or psnr.ndim != 2 or psnr.shape[1] != 2:
            raise ValueError(f"the history is not that of {iteration} iterations")
        weights = {}
        for spec in self.fit.recipe.generator.parameters():
            value = weights[spec.name] = tensors[_WEIGHTS + spec.name]
            if value.shape != spec.shape or value.dtype != np.float32:
                raise ValueError(f"{spec.name} is {value.dtype} {value.shape}, expected float32 {spec.shape}")
        called_off = metadata["stop_reason"] == "callback"
        loop.unpack(weights, tensors, metadata["numbers"], iteration)
        loop.losses[:], loop.variances[:] = losses.tolist(), variances.tolist()
        self._psnr = [(int(at), float(value)) for at, value in psnr]
        self._called_off = called_off
        self.seconds, self.resumed_at = seconds, iteration

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        fit = self.fit
        path = "plan" if isinstance(fit, NativeFit) else "autograd"
        return {
            "where": identity.where(self.placement, path),
            "settings": identity.settings_digest(
                self.problem, fit.recipe, fit.code, self.stop, self.seed, None if self.init is None else self.init.sha256
            ),
        }


def advance_together(
    cohort: NativeCohort, runs: Iterable[FitRun], iterations: int, progress: Mapping[FitRun, ProgressCallback] | None = None
) -> dict[FitRun, FitError]:
    """`FitRun.advance` for runs in slots of one cohort, an iteration of each in turn; the finished ones sit out.

    Returns those that diverge beyond repair by it, which end alone, and why. The time is shared by the iterations run. Raises
    FitError when memory runs out; a KeyboardInterrupt, or an exception of a `progress`, comes through.
    """
    running = {run.fit: run for run in runs if not run.finished}
    reports = {slot: run._reporter((progress or {}).get(run)) for slot, run in running.items()}
    before = {run: run.iteration for run in running.values()}
    start = time.perf_counter()
    try:
        with memory_errors():
            cohort.advance(
                iterations, slots=running, reports={slot: report for slot, report in reports.items() if report is not None}
            )
    finally:
        seconds = time.perf_counter() - start
        done = {run: run.iteration - iteration for run, iteration in before.items()}
        for run, count in done.items():
            run.seconds += seconds * count / max(1, sum(done.values()))
    return {run: failure for slot, run in running.items() if (failure := slot.failure) is not None}


def run(
    problem: Problem,
    recipe: Recipe,
    *,
    stop: str,
    seed: int,
    placement: Placement,
    measure: Callable[[np.ndarray], float] | None = None,
    progress: ProgressCallback | None = None,
) -> tuple[Fit | NativeFit, Outcome]:
    """Fit `problem` by `recipe` to the end; returns the fit and its outcome. Arguments and errors as of `FitRun`."""
    fitted = FitRun(problem, recipe, stop=stop, seed=seed, placement=placement, measure=measure)
    fitted.advance(fitted.ceiling, progress)
    return fitted.fit, fitted.outcome()
