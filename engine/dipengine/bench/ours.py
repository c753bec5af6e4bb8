"""The engine's own side of the measurement: a fit by the native plan, and the time of each of its steps.

All that the benchmark knows of the engine stands here; another path is measured by changing this file alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dipengine.bench.setting import AVERAGE_DECAY, LEARNING_RATE, PERTURBATION, Setting
from dipengine.errors import DeviceError, FitError
from dipengine.fitting.device import place
from dipengine.fitting.native_fit import NativeFit, supports
from dipengine.fitting.settings import Settings
from dipengine.tasks.base import Problem, Recipe

PASSES = 5  # iterations whose steps are timed, of which the median counts
_WITHOUT_END = 2**31  # a fit that is done would idle in no time


@dataclass(frozen=True)
class LayerTime:
    """Seconds of one layer in one direction of an iteration."""

    name: str  # as in `layers_of`, or a name of its own for what is no layer
    direction: str  # "forward" or "backward"
    seconds: float


class Ours(Protocol):
    """A fit by the engine."""

    path: str  # which path of the engine this is, in words
    layers_by: str  # how `layers` measures, in words

    def run(self, n: int) -> None:
        """Do n whole iterations."""

    def layers(self) -> list[LayerTime] | None:
        """The time of every layer, or None where this path cannot tell."""


def make_ours(setting: Setting) -> Ours:
    """The engine's fit of the setting's image, ready to run. Raises DeviceError where the core or the network has no plan."""
    return _PlanFit(setting)


def problem_of(setting: Setting) -> tuple[Problem, Recipe]:
    """What is fitted, without an end."""
    recipe = Recipe(setting.architecture, learning_rate=LEARNING_RATE, perturbation=PERTURBATION, average_decay=AVERAGE_DECAY,
                    iterations=_WITHOUT_END)
    return Problem("denoise", setting.target(), (setting.height, setting.width), recipe), recipe


def import_everything() -> None:
    """Import what `make_ours` imports when it is called, so that memory can be measured above it: nothing more by now."""


class _PlanFit:
    path = "native plan"
    layers_by = "the steps of an iteration"

    def __init__(self, setting: Setting) -> None:
        problem, recipe = problem_of(setting)
        placement = place(Settings(device=setting.device, precision=setting.precision, threads=setting.threads))
        if not supports(problem, recipe, placement):
            raise DeviceError("The native plan cannot run this network here; is the core built, and DIPENGINE_KERNELS unset?")
        self._fit = NativeFit(problem, recipe, 0, placement, "fixed")
        self.memory_bytes: int = self._fit.arena_bytes  # all that it holds

    def run(self, n: int) -> None:
        before = self._fit.iteration
        self._fit.run(n)
        if self._fit.iteration != before + n:
            raise FitError(f"The fit ended after {self._fit.iteration} iterations; nothing can be measured.")

    def layers(self) -> list[LayerTime] | None:
        """Steps that belong to no direction (perturb, loss, adam) count as "forward" up to the loss, then as "backward"."""
        steps = self._fit.steps()
        taken = np.zeros((PASSES, len(steps)))
        for row in taken:
            self._fit.run(1, step_seconds=row)
        found, behind = [], False
        for step, seconds in zip(steps, np.median(taken, axis=0), strict=True):
            name, _, direction = step.partition(" ")
            if seconds > 0:
                found.append(LayerTime(name, direction or ("backward" if behind else "forward"), float(seconds)))
            behind = behind or name == "loss"
        return found
