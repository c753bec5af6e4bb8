"""What a fit on autograd is made of between two iterations, its weights apart, as arrays and numbers; and back.

| array | shape, float32 | what |
|---|---|---|
| `adam/m`, `adam/v` | [trainable parameters], in the optimiser's order | Adam's moments |
| `outputs/average`, `outputs/es_mean` | [1, C, H, W] | the delivered average, ES-EMV's mean |
| `snapshot/parameters`, `m`, `v`, `average`, `es_mean` | as above | what a roll-back returns to |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dipengine.fitting.fit import Fit
from dipengine.kernels.adam import AdamState
from dipengine.kernels.statistics import StatisticsSnapshot


def save(fit: Fit) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by name, copied, and JSON-able numbers."""
    arrays, numbers = _parts(fit.optimizer.snapshot(), fit.statistics.snapshot(), "adam", "outputs")
    del arrays["adam/parameters"]  # they are the weights
    numbers |= {
        "iteration": fit.iteration,
        "learning_rate": fit.optimizer.learning_rate,
        "guard": fit.guard.state(),
        "snapshot": None,
    }
    if fit.guard.snapshot is not None:
        more, numbers["snapshot"] = _parts(*fit.guard.snapshot, "snapshot", "snapshot")
        arrays |= more
    return arrays, numbers


def load(fit: Fit, weights: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any]) -> None:
    """Go on from `weights` and what `save` returned for a fit of the same settings.

    Raises KeyError, TypeError or ValueError, with the fit as it was, for parts that are none of such a state.
    """
    iteration, rate = int(numbers["iteration"]), float(numbers["learning_rate"])
    m, v = (flat(fit, arrays[f"adam/{name}"]) for name in "mv")
    statistics = _statistics(fit, arrays, numbers, "outputs")
    step, snapshot = int(numbers["step"]), None
    if numbers["snapshot"] is not None:
        flats = [flat(fit, arrays[f"snapshot/{name}"]) for name in ("parameters", "m", "v")]
        snapshot = (
            AdamState(*flats, int(numbers["snapshot"]["step"])), _statistics(fit, arrays, numbers["snapshot"], "snapshot")
        )
    fit.guard.load_state(numbers["guard"], snapshot)
    fit.network.load_numpy(weights)
    fit.optimizer.restore(AdamState(fit.optimizer.parameters.clone(), m, v, step))
    fit.optimizer.learning_rate = rate
    fit.statistics.restore(statistics)
    fit.iteration = iteration


def flat(fit: Fit, array: np.ndarray) -> torch.Tensor:
    """A flat array of all trainable parameters as a tensor on the fit's device. Raises ValueError for another array."""
    return _tensor(array, fit.optimizer.parameters)


def _parts(
    adam: AdamState, statistics: StatisticsSnapshot, adam_folder: str, statistics_folder: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    tensors = {f"{adam_folder}/{name}": getattr(adam, name) for name in ("parameters", "m", "v")}
    tensors |= {f"{statistics_folder}/{name}": getattr(statistics, name) for name in ("average", "es_mean")}
    numbers = {"step": adam.step, "es_variance": statistics.es_variance, "frames": statistics.frames}
    return {name: np.array(tensor.cpu().numpy(), order="C") for name, tensor in tensors.items()}, numbers


def _statistics(fit: Fit, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any], folder: str) -> StatisticsSnapshot:
    images = (_tensor(arrays[f"{folder}/{name}"], fit.statistics.average) for name in ("average", "es_mean"))
    return StatisticsSnapshot(*images, float(numbers["es_variance"]), int(numbers["frames"]))


def _tensor(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    if array.shape != tuple(like.shape) or array.dtype != np.float32:
        raise ValueError(f"an array is {array.dtype} {array.shape}, expected float32 {tuple(like.shape)}")
    return torch.empty_like(like).copy_(torch.from_numpy(np.array(array)))
