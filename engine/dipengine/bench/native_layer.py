"""One layer on the native ops, forward and backward, as generators/fused.py composes them: for timing layers alone."""

from __future__ import annotations

import torch
from torch import Tensor

from dipengine.bench.operations import Layer
from dipengine.generators.architecture import NORM_EPSILON
from dipengine.kernels import conv
from dipengine.kernels.conv import Fold, Source


def _numbers(channels: int, value: float = 0.0) -> Tensor:
    return torch.full((channels,), value, dtype=torch.float64)


class NativeLayer:
    """Random images and weights for a layer, in buffers of its own; dtype is that of the images.

    Its sources' norm and slope are folded into the load, its own statistics into the store, its norm's backward into both.
    """

    def __init__(self, layer: Layer, dtype: torch.dtype) -> None:
        self.layer = layer
        self.parts = [
            (part, torch.randn(part.height, part.width, part.channels).to(dtype),
             torch.empty(part.height, part.width, part.channels, dtype=dtype),
             (_numbers(part.channels, 0.9), _numbers(part.channels, 0.1)) if part.raw else None,
             tuple(_numbers(part.channels) for _ in range(8)))
            for part in layer.parts
        ]
        inputs, size = sum(part.channels for part in layer.parts), (layer.height, layer.width, layer.channels)
        self.weight = torch.randn(layer.kernel, layer.kernel, inputs, layer.channels) / (layer.kernel * inputs**0.5)
        self.d_weight, self.gamma = torch.empty_like(self.weight), torch.ones(layer.channels)
        self.raw = torch.empty(size, dtype=dtype if layer.norm else torch.float32)
        self.gradient = torch.randn(size).to(self.raw.dtype)
        self.moments, self.sums, fold = ((_numbers(layer.channels), _numbers(layer.channels)) for _ in range(3))
        self.fold = Fold(*fold, self.gamma, None, NORM_EPSILON)
        self.bias = self.d_bias = None
        if not layer.norm:
            self.bias, self.d_bias = torch.zeros(layer.channels), torch.zeros(layer.channels)
        self.geometry = {"stride": layer.stride, "pad": layer.kernel // 2, "kernels": "native"}

    @property
    def merge(self) -> bool:
        """Whether the layer reads a concatenation (of one part where there is no skip), with that one's norm."""
        return any(part.upsample != "none" for part in self.layer.parts)

    def forward(self) -> None:
        self.outers = [None] * len(self.parts)
        sources = []
        for i, (part, x, _, inner, own) in enumerate(self.parts):
            fold = {"upsample": part.upsample, "inner": inner, "slope": 0.2 if inner else 1.0}
            if self.merge:
                self.outers[i] = own[6:]
                outer = Fold(*own[6:], torch.ones(part.channels), None, NORM_EPSILON)
                conv.norm_statistics(Source(x, **fold), own[:2], fold=outer, kernels="native")
            sources.append(Source(x, **fold, outer=self.outers[i]))
        behind = {"moments": self.moments, "fold": self.fold} if self.layer.norm else {}
        conv.forward(sources, self.weight, self.raw, bias=self.bias, **behind, **self.geometry)

    def backward(self) -> None:
        coefficients = None
        if self.layer.norm:
            coefficients, _, _ = conv.norm_fold_gradient(self.layer.pixels, self.moments, self.gamma, NORM_EPSILON, *self.sums,
                                                         centred=True, kernels="native")
        targets = []
        for (part, x, d_x, inner, own), outer in zip(self.parts, self.outers):
            wanted = {"d_x": d_x, "centre": None if outer else own[0], "sum": own[2], "product": own[3]} if part.raw else {}
            targets.append(Source(x, part.upsample, inner=inner, outer=outer, slope=0.2 if inner else 1.0, **wanted))
        conv.backward(targets, self.weight, self.gradient, raw=self.raw if coefficients else None, coefficients=coefficients,
                      d_weight=self.d_weight, d_bias=self.d_bias, **self.geometry)
        for part, x, d_x, inner, own in self.parts if self.merge else ():
            folded, _, _ = conv.norm_fold_gradient(self.layer.pixels, own[:2], torch.ones(part.channels), NORM_EPSILON, *own[2:4],
                                                   centred=False, kernels="native")
            target = Source(x, part.upsample, inner=inner, slope=0.2, d_x=d_x, centre=own[0], sum=own[4], product=own[5])
            conv.norm_backward(target, d_x, folded, kernels="native")
