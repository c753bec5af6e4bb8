"""The engine's own side of the measurement: today the autograd path over the fused kernels, and its layers one by one.

All that the benchmark knows of the engine stands here; another path is measured by changing this file alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from dipengine.bench.operations import Layer, layers_of
from dipengine.bench.setting import AVERAGE_DECAY, LEARNING_RATE, PERTURBATION, Setting
from dipengine.bench.turns import PAUSE
from dipengine.fitting.device import place, require_torch, threads
from dipengine.fitting.fit import Fit
from dipengine.fitting.settings import Settings
from dipengine.tasks.base import Problem, Recipe

PASSES = 3  # of each layer, of which the median counts


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
    """The engine's fit of the setting's image, ready to run. Raises DependencyError where the path needs what is missing."""
    return _AutogradFit(setting)


def import_everything() -> None:
    """Import what `make_ours` imports when it is called, so that memory can be measured above it."""
    require_torch()
    from dipengine.generators import hourglass  # noqa: F401
    from dipengine.kernels import adam, masked_mse  # noqa: F401


class _AutogradFit:
    layers_by = "each layer's kernels run by themselves, outside the iteration"

    def __init__(self, setting: Setting) -> None:
        architecture = setting.architecture
        recipe = Recipe(architecture, learning_rate=LEARNING_RATE, perturbation=PERTURBATION, average_decay=AVERAGE_DECAY)
        problem = Problem("denoise", setting.target(), (setting.height, setting.width), recipe)
        self._setting = setting
        self._placement = place(Settings(device="cpu", precision=setting.precision, threads=setting.threads))
        self._fit = Fit(problem, recipe, 0, self._placement)
        self.path = f"autograd over {self._placement.kernels} kernels"

    def run(self, n: int) -> None:
        with threads(self._placement, torch_is_idle=self._fit.torch_is_idle):
            for _ in range(n):
                self._fit.step()

    def layers(self) -> list[LayerTime] | None:
        if not self._fit.network.fused:
            return None
        setting, found = self._setting, []
        with threads(self._placement, torch_is_idle=True):
            for layer in layers_of(setting.architecture, setting.height, setting.width):
                found += _times(layer, setting.precision)
        return found


def _times(layer: Layer, precision: str) -> list[LayerTime]:
    import torch

    from dipengine.bench.native_layer import NativeLayer

    native = NativeLayer(layer, torch.bfloat16 if precision == "bf16" else torch.float32)
    time.sleep(PAUSE)
    native.forward()
    native.backward()
    samples: dict[str, list[float]] = {"forward": [], "backward": []}
    for _ in range(PASSES):
        for direction, taken in samples.items():
            start = time.perf_counter()
            getattr(native, direction)()
            taken.append(time.perf_counter() - start)
    return [LayerTime(layer.name, direction, sorted(taken)[PASSES // 2]) for direction, taken in samples.items()]
