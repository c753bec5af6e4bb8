"""A finished generator with its BatchNorms frozen at the final z and folded away: plain convolutions, weights and biases.

The generator always normalises by the statistics of its own activations. Painting one image, these are constants, and every
norm is an affine map per channel, y = a v + b with a = gamma / sqrt(variance + eps) and b = beta - a mean:

- behind a convolution it scales the weights' output channels and becomes the bias;
- in front of one (the norm of a concatenation, "merge") it scales the input channels, and b passes through the taps into the
  bias where padding reflects (a constant stays a constant). With zero padding it does not, and stays an explicit map.

Folding is done in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dipengine.generators.architecture import NORM_EPSILON, Hourglass


@dataclass(frozen=True)
class Folded:
    """One convolution: weight [out, in, k, k] and bias [out], float32; `before` is an affine map (a, b), float32 [in] each, of
    its input that could not be folded."""

    weight: np.ndarray
    bias: np.ndarray
    before: tuple[np.ndarray, np.ndarray] | None = None


def fold(architecture: Hourglass, parameters: Mapping[str, np.ndarray], statistics: Mapping[str, np.ndarray]) -> dict[str, Folded]:
    """Every convolution by its name ("level0.up", ..., "head").

    parameters: all of the architecture's, by name. statistics: of each norm the mean its input had, under the name of its gamma,
    and the biased variance, under that of its beta, float [channels].
    """
    def affine(norm: str) -> tuple[np.ndarray, np.ndarray]:
        gamma, beta, mean, variance = (
            np.asarray(source[f"{norm}.norm.{leaf}"], np.float64)
            for source, leaf in ((parameters, "gamma"), (parameters, "beta"), (statistics, "gamma"), (statistics, "beta"))
        )
        scale = gamma / np.sqrt(variance + NORM_EPSILON)
        return scale, beta - scale * mean

    folded = {}
    names = [spec.name.removesuffix(".conv.weight") for spec in architecture.parameters() if spec.name.endswith(".conv.weight")]
    for name in names:
        weight = np.asarray(parameters[f"{name}.conv.weight"], np.float64)
        if name == "head":
            folded[name] = _single(weight, np.asarray(parameters["head.conv.bias"], np.float64))
            continue
        shift = np.zeros(weight.shape[0])  # the bias in front of a norm cancels, and the statistics were taken without it
        before = None
        if name.endswith(".up"):
            a, b = affine(name.removesuffix("up") + "merge")
            if architecture.padding == "reflection":
                shift = np.einsum("oikl,i->o", weight, b)
                weight = weight * a[None, :, None, None]
            else:
                before = (a.astype(np.float32), b.astype(np.float32))
        scale, offset = affine(name)
        folded[name] = _single(weight * scale[:, None, None, None], scale * shift + offset, before)
    return folded


def _single(weight: np.ndarray, bias: np.ndarray, before: tuple[np.ndarray, np.ndarray] | None = None) -> Folded:
    return Folded(np.ascontiguousarray(weight, np.float32), bias.astype(np.float32), before)
