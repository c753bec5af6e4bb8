"""Consolidation on PyTorch's autograd, for networks that the native plan does not run."""

from __future__ import annotations

from typing import Any

import numpy as np

from dipengine.fitting.device import Placement, threads
from dipengine.fitting.fit import Fit
from dipengine.tasks.base import Problem, Recipe


class AutogradFit:
    """`Fit` with what `consolidate` asks of a fit; see `NativeFit`."""

    def __init__(self, problem: Problem, recipe: Recipe, seed: int, placement: Placement) -> None:
        self._fit = Fit(problem, recipe, seed, placement)
        self.losses: list[float] = []
        self.variances: list[float] = []

    def run(self, iterations: int) -> None:
        """So many iterations."""
        with threads(self._fit.placement, torch_is_idle=self._fit.torch_is_idle):
            for _ in range(iterations):
                step = self._fit.step()
                self.losses.append(step.loss)
                self.variances.append(step.variance)

    def render(self) -> np.ndarray:
        """f_theta(z), float32 [H, W, C] in [0, 1]."""
        with threads(self._fit.placement, torch_is_idle=self._fit.torch_is_idle):
            return self._fit.render()

    def weights(self) -> dict[str, np.ndarray]:
        """All parameters by name, float32, copied."""
        return self._fit.weights()

    def load_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Set all parameters; Adam's state stays."""
        self._fit.network.load_numpy(weights)

    def statistics(self) -> dict[str, np.ndarray]:
        """Per-channel mean, by the name of its gamma, and biased variance, by that of its beta, of what each norm is given at z."""
        network = self._fit.network
        names = {id(value): name for name, value in network.named_parameters()}
        seen: dict[str, np.ndarray] = {}

        def listen(norm: Any, x: Any) -> None:
            wide = x.detach().double()
            seen[names[id(norm.gamma)]] = wide.mean((0, 2, 3)).numpy()
            seen[names[id(norm.beta)]] = wide.var((0, 2, 3), unbiased=False).numpy()

        network.norm_listener = listen
        try:
            self.render()
        finally:
            network.norm_listener = None
        return seen
