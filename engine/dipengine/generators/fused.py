"""The hourglass on the fused convolutions: one autograd function for the whole network.

What is kept for the backward pass are the raw outputs of the convolutions alone. Every BatchNorm and LeakyReLU is folded
into the load of the next convolution, every BatchNorm's backward into the load of its gradient (design 3.7), and the
concatenation in front of an "up" convolution is two accumulations into one output (3.4).

Notation as in `architecture`: a `Raw` is a convolution's output with what its norm needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dipengine.errors import InputError
from dipengine.generators.architecture import NORM_EPSILON, Hourglass
from dipengine.kernels import conv
from dipengine.kernels.conv import Affine, Fold, Source

MAX_KERNEL = 7


def supports(architecture: Hourglass) -> bool:
    """True where the fused ops can do every layer; the plain network does the rest."""
    widest = max(architecture.kernel_down) + (1 if architecture.downsample == "average" else 0)
    return all(kernel == 3 for kernel in architecture.kernel_up) and widest <= MAX_KERNEL


@dataclass
class Raw:
    """A convolution's raw output x [H, W, C], its norm's moments and fold, and the gradient that comes back to it.

    z is one too, of which x alone counts.
    """

    x: Tensor
    slope: float = 1.0
    gradient: Tensor | None = None  # of inner(x), behind the slope: leaky_relu' * d_activation
    moments: tuple[Tensor, ...] = ()
    sums: tuple[Tensor, ...] = ()
    fold: Affine | None = None
    arrived: bool = field(default=False)  # a first share of the gradient is there

    @classmethod
    def like(cls, z: Tensor, size: tuple[int, int, int], slope: float) -> Raw:
        """Buffers of `size` [H, W, C] in the dtype and on the device of z."""
        x, gradient = (torch.empty(size, dtype=z.dtype, device=z.device) for _ in range(2))
        mean, variance, total, product, scale, shift = conv.numbers(size[2], z, 6)
        return cls(x, slope, gradient, (mean, variance), (total, product), (scale, shift))

    @property
    def pixels(self) -> int:
        return self.x.shape[0] * self.x.shape[1]


class FusedHourglass:
    """The network's forward and backward pass over buffers of its own, for one canvas, dtype and device at a time.

    kernels: "native" or "torch" (the twins, for tests). Not for two threads at once.
    """

    def __init__(self, architecture: Hourglass, kernels: str = "native") -> None:
        if not supports(architecture):
            raise InputError("The fused kernels do up convolutions of kernel 3 and down convolutions of kernels up to 7 "
                             "(5 with average pooling); use kernels='torch' for others.")
        self.architecture = architecture
        self.kernels = kernels
        self.generation = 0  # of the buffers: a backward pass needs those of its own forward pass
        self._key: tuple | None = None
        self._raws: dict[str, Raw] = {}

    def forward(self, z: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """Logits [H, W, out] (float32; float64 for float64) from z [H, W, C] and the network's parameters by name."""
        self._prepare(z)
        self.generation += 1
        self._weights = weights
        self._z = Raw(z)
        self._merges: dict[str, tuple] = {}
        top = self._level(0, self._z)
        real = torch.float64 if z.dtype == torch.float64 else torch.float32
        logits = torch.empty(*z.shape[:2], self.architecture.output_channels, dtype=real, device=z.device)
        conv.forward([self._source(top)], _hwio(weights["head.conv.weight"]), logits, bias=weights["head.conv.bias"],
                     kernels=self.kernels)
        self._top = top
        return logits

    def backward(self, d_logits: Tensor) -> dict[str, Tensor]:
        """Gradients of the parameters that are not dead, from d_logits [H, W, out]; weights as [out, in, k, k] views."""
        gradients: dict[str, Tensor] = {}
        for raw in self._raws.values():
            raw.arrived = False
        head = _hwio(self._weights["head.conv.weight"])
        d_weight, d_bias = torch.empty_like(head), torch.empty_like(self._weights["head.conv.bias"])
        conv.backward([self._target(self._top)], head, d_logits, d_weight=d_weight, d_bias=d_bias, kernels=self.kernels)
        gradients["head.conv.weight"], gradients["head.conv.bias"] = _oihw(d_weight), d_bias
        self._level_backward(0, self._z, gradients)
        return gradients

    # ---- forward ----------------------------------------------------------------------------------------------------

    def _level(self, i: int, enter: Raw) -> Raw:
        arch = self.architecture
        name = f"level{i}"
        stride = 2
        skip = self._unit(f"{name}.skip", [self._source(enter)]) if arch.channels_skip[i] else None
        down = self._unit(f"{name}.down1", [self._source(enter)], stride=stride)
        down = self._unit(f"{name}.down2", [self._source(down)])
        deep = self._level(i + 1, down) if i + 1 < arch.levels else down
        y = self._unit(f"{name}.up", self._merge(i, skip, deep))
        return self._unit(f"{name}.point", [self._source(y)]) if arch.one_by_one_up else y

    def _merge(self, i: int, skip: Raw | None, deep: Raw) -> list[Source]:
        """The sources of level i's "up" convolution: each with its part of the concatenation's norm as outer."""
        gamma, beta = (self._weights[f"level{i}.merge.norm.{part}"] for part in ("gamma", "beta"))
        parts = []
        first = 0
        for raw, upsample in ((skip, "none"), (deep, self.architecture.upsample[i])):
            if raw is None:
                continue
            channels = slice(first, first + raw.x.shape[2])
            first = channels.stop
            source = Source(raw.x, upsample, inner=raw.fold, slope=raw.slope)
            mean, variance, *outer = conv.numbers(raw.x.shape[2], raw.x, 4)
            moments, outer = (mean, variance), tuple(outer)
            fold = Fold(*outer, gamma[channels], beta[channels], NORM_EPSILON)
            conv.norm_statistics(source, moments, fold=fold, kernels=self.kernels)
            parts.append((raw, upsample, moments, outer, gamma[channels]))
        self._merges[f"level{i}"] = tuple(parts)
        return [Source(raw.x, upsample, inner=raw.fold, outer=outer, slope=raw.slope) for raw, upsample, _, outer, _ in parts]

    def _unit(self, name: str, sources: list[Source], stride: int = 1) -> Raw:
        raw = self._raws[name]
        weight, settings = self._geometry(name, stride)
        fold = Fold(*raw.fold, self._weights[f"{name}.norm.gamma"], self._weights[f"{name}.norm.beta"], NORM_EPSILON)
        conv.forward(sources, weight, raw.x, moments=raw.moments, fold=fold, kernels=self.kernels, **settings)
        return raw

    def _geometry(self, name: str, stride: int) -> tuple[Tensor, dict]:
        """The weight as [k, k, in, out] and the convolution's settings; a 2x2 mean behind it becomes part of it."""
        weight = _hwio(self._weights[f"{name}.conv.weight"])
        pad = weight.shape[0] // 2
        if stride == 2 and self.architecture.downsample == "average":
            weight = _with_mean(weight)
        return weight, {"stride": stride, "pad": pad, "padding": self.architecture.padding}

    def _source(self, raw: Raw) -> Source:
        return Source(raw.x, inner=raw.fold, slope=raw.slope)

    # ---- backward ---------------------------------------------------------------------------------------------------

    def _level_backward(self, i: int, enter: Raw, gradients: dict[str, Tensor]) -> None:
        arch = self.architecture
        name = f"level{i}"
        up, down1, down2 = (self._raws[f"{name}.{part}"] for part in ("up", "down1", "down2"))
        if arch.one_by_one_up:
            self._unit_backward(f"{name}.point", [self._target(up)], gradients)
        self._merge_backward(i, gradients)
        if i + 1 < arch.levels:
            self._level_backward(i + 1, down2, gradients)
        self._unit_backward(f"{name}.down2", [self._target(down1)], gradients)
        if arch.channels_skip[i]:
            self._unit_backward(f"{name}.skip", [self._target(enter)], gradients)
        self._unit_backward(f"{name}.down1", [self._target(enter)], gradients, stride=2)

    def _target(self, raw: Raw) -> Source:
        """A source that takes the gradient of raw's activation; further shares add to the first."""
        if raw is self._z:
            return self._source(raw)
        accumulate, raw.arrived = raw.arrived, True
        return Source(raw.x, inner=raw.fold, slope=raw.slope, d_x=raw.gradient, accumulate=accumulate,
                      centre=raw.moments[0], sum=raw.sums[0], product=raw.sums[1])

    def _unit_backward(self, name: str, sources: list[Source], gradients: dict[str, Tensor], stride: int = 1) -> None:
        raw = self._raws[name]
        weight, settings = self._geometry(name, stride)
        coefficients, d_gamma, d_beta = conv.norm_fold_gradient(
            raw.pixels, raw.moments, self._weights[f"{name}.norm.gamma"], NORM_EPSILON, *raw.sums, centred=True,
            kernels=self.kernels,
        )
        d_weight = torch.empty_like(weight)
        conv.backward(sources, weight, raw.gradient, raw=raw.x, coefficients=coefficients, d_weight=d_weight,
                      kernels=self.kernels, **settings)
        if stride == 2 and self.architecture.downsample == "average":
            d_weight = _with_mean_transposed(d_weight)
        gradients[f"{name}.conv.weight"] = _oihw(d_weight)
        gradients[f"{name}.norm.gamma"], gradients[f"{name}.norm.beta"] = d_gamma, d_beta

    def _merge_backward(self, i: int, gradients: dict[str, Tensor]) -> None:
        """Through the "up" convolution and the concatenation's norm, to the gradients of both its parts."""
        parts = self._merges[f"level{i}"]
        totals = [conv.numbers(raw.x.shape[2], raw.x, 2) for raw, *_ in parts]
        self._unit_backward(
            f"level{i}.up",
            [Source(raw.x, upsample, inner=raw.fold, outer=outer, slope=raw.slope, d_x=raw.gradient, sum=total, product=product)
             for (raw, upsample, _, outer, _), (total, product) in zip(parts, totals)],
            gradients,
        )
        pixels = self._raws[f"level{i}.up"].pixels
        d_gammas, d_betas = [], []
        for (raw, upsample, moments, _, gamma), sums in zip(parts, totals):
            coefficients, d_gamma, d_beta = conv.norm_fold_gradient(pixels, moments, gamma, NORM_EPSILON, *sums, centred=False,
                                                                     kernels=self.kernels)
            d_gammas.append(d_gamma)
            d_betas.append(d_beta)
            target = Source(raw.x, upsample, inner=raw.fold, slope=raw.slope, d_x=raw.gradient, centre=raw.moments[0],
                            sum=raw.sums[0], product=raw.sums[1])
            conv.norm_backward(target, raw.gradient, coefficients, kernels=self.kernels)
            raw.arrived = True
        gradients[f"level{i}.merge.norm.gamma"] = torch.cat(d_gammas)
        gradients[f"level{i}.merge.norm.beta"] = torch.cat(d_betas)

    # ---- buffers ----------------------------------------------------------------------------------------------------

    def _prepare(self, z: Tensor) -> None:
        key = (z.shape[0], z.shape[1], z.dtype, z.device)
        if key == self._key:
            return
        self._key, self._raws = None, {}
        arch = self.architecture
        for i in range(arch.levels):
            height, width = z.shape[0] >> i, z.shape[1] >> i
            sizes = {"down1": (height // 2, width // 2, arch.channels_down[i]),
                     "down2": (height // 2, width // 2, arch.channels_down[i]),
                     "up": (height, width, arch.channels_up[i])}
            if arch.channels_skip[i]:
                sizes["skip"] = (height, width, arch.channels_skip[i])
            if arch.one_by_one_up:
                sizes["point"] = sizes["up"]
            for part, size in sizes.items():
                self._raws[f"level{i}.{part}"] = Raw.like(z, size, arch.negative_slope)
        self._key = key


class _Network(torch.autograd.Function):
    """z, the fused network, names and parameters -> logits [1, out, H, W]."""

    @staticmethod
    def forward(ctx, z, fused, names, *parameters):
        weights = {name: parameter.detach() for name, parameter in zip(names, parameters)}
        logits = fused.forward(z.detach()[0].permute(1, 2, 0).contiguous(), weights)
        ctx.fused, ctx.names, ctx.generation = fused, names, fused.generation
        ctx.dtypes = [parameter.dtype for parameter in parameters]
        return logits.permute(2, 0, 1)[None]

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logits):
        if ctx.generation != ctx.fused.generation:
            raise InputError("The network has been evaluated again since, over the same buffers; call backward() before the "
                             "next forward pass, or use kernels='torch'.")
        gradients = ctx.fused.backward(d_logits[0].permute(1, 2, 0).contiguous())
        wanted = zip(ctx.names, ctx.needs_input_grad[3:], ctx.dtypes)
        return None, None, None, *(gradients[name].to(dtype) if needed else None for name, needed, dtype in wanted)


def evaluate(fused: FusedHourglass, z: Tensor, named_parameters: dict[str, Tensor]) -> Tensor:
    """Logits [1, out, H, W] in channels_last order from z [1, C, H, W], differentiable in the parameters.

    Raises InputError where z itself wants a gradient: the fused network has none for it.
    """
    if z.requires_grad:
        raise InputError("The fused network has no gradient for the code z; use kernels='torch'.")
    return _Network.apply(z, fused, tuple(named_parameters), *named_parameters.values())


def _hwio(weight: Tensor) -> Tensor:
    return weight.permute(2, 3, 1, 0).contiguous()


def _oihw(weight: Tensor) -> Tensor:
    return weight.permute(3, 2, 0, 1)


_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))


def _with_mean(weight: Tensor) -> Tensor:
    """A stride-1 convolution [k, k, in, out] and the 2x2 mean behind it as one of stride 2, [k + 1, k + 1, in, out]."""
    k = weight.shape[0]
    wide = weight.new_zeros(k + 1, k + 1, *weight.shape[2:])
    for y, x in _CORNERS:
        wide[y : y + k, x : x + k] += weight / 4
    return wide


def _with_mean_transposed(d_wide: Tensor) -> Tensor:
    k = d_wide.shape[0] - 1
    return sum(d_wide[y : y + k, x : x + k] for y, x in _CORNERS) / 4
