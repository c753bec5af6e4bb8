"""Fits of several images in one native plan: slots for one canvas and one set of parameters, refilled as images come and go.

Images of one canvas (a function of the image's size alone: generators.architecture) share a plan whatever their own sizes. Each
has the bits that it has in a plan of its own, whatever runs beside it or ran in its slot before. All memory is taken at once, for
images as large as the canvas; opening a slot takes none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dipengine.errors import InputError
from dipengine.fitting.device import Placement
from dipengine.fitting.native_fit import NativeFit, _check_memory, _generator, _resolved, _settings, supports
from dipengine.generators.code import Code
from dipengine.kernels import pool
from dipengine.kernels.backend import native
from dipengine.tasks.base import Problem, Recipe

if TYPE_CHECKING:
    from dipengine.fitting.warm_start import WarmStart

Reports = Mapping["CohortSlot", Callable[[dict[str, Any]], bool]]
_OF_ONE_IMAGE = ("slots", "height", "width", "data_height", "data_width")  # settings that a slot has for itself


def cohort_key(problem: Problem, recipe: Recipe, placement: Placement, stop: str) -> str | None:
    """Equal for images that may share a cohort; None where the native plan cannot run the fit.

    Canvas, network, operator, data term with a sensor's noise (of Gaussian noise that it is known), recipe, stop and precision decide;
    the number of threads does not.
    """
    if not supports(problem, recipe, placement):
        return None
    code, recipe = _resolved(problem, recipe, seed=0)
    return _key(problem, recipe, code, placement, stop)


def cohort_bytes(problem: Problem, recipe: Recipe, placement: Placement, stop: str, slots: int) -> int:
    """Bytes of the arena that a cohort of so many slots would take, before anything is taken."""
    code, recipe = _resolved(problem, recipe, seed=0)
    return native.fit_memory(_generator(recipe.generator), _plan(problem, recipe, code, placement, stop, slots), pool.get())


class CohortSlot(NativeFit):
    """One image in a cohort, from `NativeCohort.open` to `close`: a `NativeFit` whose memory is a slot of the cohort's."""

    def __init__(
        self, cohort: NativeCohort, index: int, problem: Problem, recipe: Recipe, seed: int, init: WarmStart | None
    ) -> None:
        self._slot, self._slots = index, cohort.slots
        self.cohort: NativeCohort | None = cohort  # None once it is closed
        self._describe(problem, recipe, seed, cohort.placement, init)

    @property
    def _native(self) -> Any:
        return self._owner()._native

    @property
    def arena_bytes(self) -> int:
        """Of the whole cohort."""
        return self._owner().arena_bytes

    @property
    def running(self) -> bool:
        """True until the fit has stopped by itself or failed."""
        return self.progress()["state"] == "running"

    def set_threads(self, count: int) -> None:
        """CPU threads of the whole cohort from the next run on; the bits stay the same."""
        self._owner().set_threads(count)

    def gradients(self) -> dict[str, np.ndarray]:
        """Raises InputError: a cohort keeps the gradients of the slot that ran last alone."""
        raise InputError("A slot of a cohort keeps no gradients of its own; fit the image alone to see them.")

    def close(self) -> None:
        """Free the slot for another image. What was delivered before stays; nothing more can be asked of the slot."""
        if self.cohort is not None:
            self.cohort._open[self._slot] = None
            self.cohort = None

    def _owner(self) -> NativeCohort:
        if self.cohort is None:
            raise InputError("The slot is closed and may hold another image; open one anew.")
        return self.cohort


class NativeCohort:
    """A plan of `slots` slots for images like the one given: of its canvas, by its recipe."""

    def __init__(self, problem: Problem, recipe: Recipe, placement: Placement, stop: str, slots: int) -> None:
        """Take all memory; the image itself is not opened. Raises OutOfMemory where there is too little, InputError where the
        native plan cannot run such a fit."""
        if not supports(problem, recipe, placement):
            raise InputError("A cohort takes built-in tasks on native kernels alone; fit this image by itself.")
        if slots < 1:
            raise InputError(f"A cohort of {slots} slots holds no image; give it at least 1.")
        code, recipe = _resolved(problem, recipe, seed=0)
        self.placement = placement
        self.canvas = recipe.generator.canvas(*problem.output_shape)
        self.slots = slots
        self.key = _key(problem, recipe, code, placement, stop)
        self._generator = _generator(recipe.generator)
        self._settings = _plan(problem, recipe, code, placement, stop, slots)
        self._open: list[CohortSlot | None] = [None] * slots
        pool.set_threads(placement.threads)
        if placement.device == "cpu":
            _check_memory(native.fit_memory(self._generator, self._settings, pool.get()))
        self._make()

    @property
    def free(self) -> int:
        """Slots that hold no image."""
        return self._open.count(None)

    @property
    def open_slots(self) -> list[CohortSlot]:
        """Those that hold an image, by their place."""
        return [slot for slot in self._open if slot is not None]

    def compatible(self, problem: Problem, recipe: Recipe, placement: Placement, stop: str) -> bool:
        """True where an image may enter: its `cohort_key` is the cohort's."""
        return cohort_key(problem, recipe, placement, stop) == self.key

    def open(
        self, problem: Problem, recipe: Recipe, seed: int, stop: str, init: WarmStart | None = None,
        *, placement: Placement | None = None,
    ) -> CohortSlot:
        """Put an image into a free slot, with the weights of `seed` or of `init`; nothing is run or allocated for it.

        placement: where its fit is meant to run, to be sure that it is here. Raises InputError, with the cohort as it was, where no
        slot is free, where the image is not `compatible`, and for what no fit can start from.
        """
        if not self.free:
            raise InputError(f"All {self.slots} slots of the cohort hold images; close one first.")
        slot = CohortSlot(self, self._open.index(None), problem, recipe, seed, init)
        placement = placement or self.placement
        fits = supports(problem, recipe, placement)
        if not fits or _key(problem, slot.recipe, slot.code, placement, stop) != self.key:
            raise InputError("The image is of another canvas, task, recipe or precision than the cohort; fit it by itself or in "
                             "another one.")
        slot._start(init)
        self._open[slot._slot] = slot
        return slot

    def advance(
        self, iterations: int, *, slots: Iterable[CohortSlot] | None = None, reports: Reports | None = None
    ) -> list[CohortSlot]:
        """Up to `iterations` more of every slot that runs, one each in turn. Returns those that have come to their end by it.

        slots: those that take part; all where it is not given. reports: called after each iteration of their slot with its
        progress; one that returns True lets its slot sit out the rest. A slot that fails ends alone, with its `failure`. An
        exception of a report, or KeyboardInterrupt, leaves every slot between two iterations.
        """
        taking_part = [slot for slot in (self.open_slots if slots is None else slots) if slot.running]
        running = taking_part
        for _ in range(iterations if reports else 1):
            self._run(running, 1 if reports else iterations)
            for slot in running if reports else ():
                if slot in reports and reports[slot](slot.progress()):
                    running = [other for other in running if other is not slot]
            running = [slot for slot in running if slot.running]
            if not running:
                break
        return [slot for slot in taking_part if not slot.running]

    def set_threads(self, count: int) -> None:
        """CPU threads from the next run on. An arena has room for one number of threads: it is made anew."""
        if count == self.placement.threads:
            return
        if self.placement.device != "cpu":
            self.placement = replace(self.placement, threads=count)
            return
        states = [(slot, slot.save_state()) for slot in self.open_slots]
        self._native = None  # its memory is needed for the next
        self.placement = replace(self.placement, threads=count)
        pool.set_threads(count)
        self._make()
        for slot, state in states:
            slot.placement = self.placement
            slot.load_state(state)

    def _make(self) -> None:
        self._native = native.Fit(pool.get(), self._generator, self._settings)
        self.arena_bytes: int = self._native.bytes

    def _run(self, running: list[CohortSlot], iterations: int) -> None:
        before = [slot.iteration for slot in running]
        losses, variances = np.empty((2, self.slots, iterations))
        try:
            self._native.run(iterations, slots=[slot._slot for slot in running], losses=losses, variances=variances)
        finally:
            for slot, iteration in zip(running, before):
                slot._take(losses, variances, iteration)


def _key(problem: Problem, recipe: Recipe, code: Code, placement: Placement, stop: str) -> str:
    settings = _settings(problem, recipe, code, placement, stop)
    shared = {name: value for name, value in settings.items() if name not in _OF_ONE_IMAGE}
    shared["sigma"] = settings["sigma"] > 0  # how strong the noise is, each slot knows for itself
    canvas = recipe.generator.canvas(*problem.output_shape)
    return json.dumps([canvas, _generator(recipe.generator), shared], sort_keys=True)


def _plan(problem: Problem, recipe: Recipe, code: Code, placement: Placement, stop: str, slots: int) -> dict[str, Any]:
    """Settings of a plan for images as large as the canvas."""
    settings = _settings(problem, recipe, code, placement, stop)
    sides = recipe.generator.canvas(*problem.output_shape)
    if settings["operator_kind"] == 1:
        data = [-(-side // settings["factor"]) for side in sides]
    elif settings["operator_kind"] == 2:
        data = [side - settings[kernel] + 1 for side, kernel in zip(sides, ("kernel_height", "kernel_width"))]
    else:
        data = sides
    return settings | dict(zip(_OF_ONE_IMAGE, (slots, *sides, *data)))
