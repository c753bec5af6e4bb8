"""Initial parameters of a generator: PyTorch's default distributions, drawn by Philox counters. Needs no torch.

Convolution weights and biases are uniform in [-1/sqrt(fan_in), 1/sqrt(fan_in)), which is what torch.nn.Conv2d draws;
gammas are 1 and betas 0, as in torch.nn.BatchNorm2d.
"""

from __future__ import annotations

import numpy as np

from dipengine.generators.architecture import Hourglass, ParameterSpec

WEIGHTS_STREAM = 2


def initial_parameters(architecture: Hourglass, seed: int, *, kernels: str = "auto") -> dict[str, np.ndarray]:
    """Draw every parameter: name -> float32 array, in the order of `architecture.parameters()`.

    The tensor at position p of that order takes its numbers from Philox stream WEIGHTS, step p, element index in C
    order of its shape (a weight's is out, in, row, column). So a tensor depends on (seed, p, shape) alone, whatever
    was drawn before it. seed: 0 to 2^64 - 1.
    """
    return {
        spec.name: initial_tensor(spec, seed, position, kernels=kernels)
        for position, spec in enumerate(architecture.parameters())
    }


def initial_tensor(spec: ParameterSpec, seed: int, position: int, *, kernels: str = "auto") -> np.ndarray:
    """Draw the one tensor at `position` of the parameter order: float32 of `spec.shape`.

    Uniform ones are (2u - 1) * bound with u in [0, 1) a multiple of 2^-24: 2u - 1 is exact in float32, so one
    rounding remains, the product's.
    """
    from dipengine.kernels import philox

    if spec.initial == "ones":
        return np.ones(spec.shape, np.float32)
    if spec.initial == "zeros":
        return np.zeros(spec.shape, np.float32)
    u = philox.uniform(seed, WEIGHTS_STREAM, position, spec.size, kernels=kernels)
    return ((np.float32(2) * u - np.float32(1)) * np.float32(spec.bound)).reshape(spec.shape)
