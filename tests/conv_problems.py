"""Random convolutions for the tests of kernels.conv, and an oracle for them that shares nothing with the twins.

A `Layer` is what a convolution is; a `Problem` is a layer with numbers in one dtype. `run` computes a problem with the
kernels asked for, `exact` in float64 by autograd on PyTorch's own operations; both return the outputs by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from dipengine.kernels import conv
from dipengine.kernels.conv import Fold, Source

CHANNELS = (1, 2, 3, 4, 5, 8, 15, 16, 17, 24, 31, 32, 33, 40)
UNTOUCHED = 77.0  # around every window into a larger tensor
NORM_EPS = 1e-5


@dataclass(frozen=True)
class Input:
    """One source: x's size and what is folded into loading it."""

    height: int
    width: int
    channels: int
    upsample: str = "none"
    inner: bool = True
    outer: bool = False
    slope: float = 0.2
    data: bool = True  # its gradient is wanted
    accumulate: bool = False
    centre: bool = True
    sums: bool = True


@dataclass(frozen=True)
class Layer:
    inputs: tuple[Input, ...]
    channels: int
    kernel: int = 3
    stride: int = 1
    pad: int = 1
    padding: str = "reflection"
    bias: bool = False
    coefficients: bool = True
    moments: bool = True
    wide: bool = False  # raw and gradient in float32 beside bfloat16
    windows: bool = False  # every image is a window of a larger tensor

    def size(self) -> tuple[int, int]:
        """(height, width) of raw."""
        first = self.inputs[0]
        factor = 1 if first.upsample == "none" else 2
        return tuple((factor * n + 2 * self.pad - self.kernel) // self.stride + 1 for n in (first.height, first.width))

    @property
    def geometry(self) -> dict:
        return {"stride": self.stride, "pad": self.pad, "padding": self.padding}


FAMILIES = ("pointwise", "plain", "even", "strided", "nearest", "bilinear", "paired", "wide")


def draw_layer(family: str, seed: int) -> Layer:
    """A layer of the family; every second one has two sources, every fourth is long in one direction.

    "even": one source, 3x3, even sides and many channels, which a kernel may do two by two outputs at a time. "wide": the
    same of at least 32 pixels a side, in fours. "paired": two by two of a source that is upsampled by the nearest sample,
    beside which another may stand.
    """
    generator = torch.Generator().manual_seed(1000 * FAMILIES.index(family) + seed)

    def pick(*values):
        return values[int(torch.randint(len(values), (), generator=generator))]

    up = {"nearest": "nearest", "paired": "nearest", "bilinear": "bilinear"}.get(family, "none")
    kernel = {"pointwise": 1, "plain": pick(3, 3, 4, 5, 7), "strided": pick(1, 3, 3, 4, 5, 6, 7)}.get(family, 3)
    pad = 1 if up != "none" or family in ("even", "wide") else pick(0, kernel // 2, kernel // 2, kernel - 1)
    least = 1 if up != "none" else max(pad + 1, kernel)
    height, width = (least + pick(0, 0, 1, 2, 3, 5, 6, 9, 14) for _ in range(2))
    long = seed % 4 == 3  # over one block of 128 columns, or one chunk of rows; few channels, for the tests' time
    if long:
        height, width = pick((least, 130 + pick(0, 1, 7, 127, 131)), (70 + pick(0, 1, 63), least))
    counts = CHANNELS[:6] if long else CHANNELS
    sources = 1 + seed % 2
    if family == "wide":
        height, width = 32 + 4 * (height % 3), 32 + 4 * (width % 3)
        if long:
            height, width = pick((32, 260 + 4 * pick(0, 1, 2)), (36, 32))
        counts, sources = (32, 33, 40, 48), 1
    if family in ("even", "paired"):
        height, width = 2 + 2 * (height % 4), 16 + 2 * (width % 6)
        if long:
            height, width = pick((2, 128 + pick(0, 2, 14, 130)), (70, 16))
        counts, sources = (32, 33, 40, 48), sources if family == "paired" else 1
    inputs = []
    for _ in range(sources):
        folded = pick(True, True, False)
        inputs.append(Input(
            height, width, pick(*counts), inner=folded, outer=pick(True, False), slope=pick(0.2, 0.2, 0.01, 1.0),
            data=pick(True, True, True, False), accumulate=pick(True, False), centre=pick(True, False),
            sums=pick(True, True, False),
        ))
    if up != "none":
        which = pick(0, len(inputs) - 1)
        for i, one in enumerate(inputs):
            factor = 1 if i == which else 2
            inputs[i] = Input(**{**vars(one), "height": factor * height, "width": factor * width,
                                 "upsample": up if i == which else "none"})
    return Layer(
        tuple(inputs), pick(*counts), 3 if family in ("even", "wide") else kernel, 2 if family == "strided" else 1, pad, pick("reflection", "zero"),
        bias=pick(True, False), coefficients=pick(True, True, False), moments=pick(True, True, False),
        wide=pick(True, False, False), windows=pick(True, False),
    )


@dataclass
class Problem:
    """Numbers for a layer. images: x, old d_x of every input, gradient and raw; weights and per-channel numbers."""

    layer: Layer
    dtype: torch.dtype
    x: list[Tensor] = field(default_factory=list)
    old: list[Tensor] = field(default_factory=list)
    inner: list[tuple[Tensor, Tensor] | None] = field(default_factory=list)
    outer: list[tuple[Tensor, Tensor] | None] = field(default_factory=list)
    centre: list[Tensor | None] = field(default_factory=list)

    def __init__(self, layer: Layer, dtype: torch.dtype, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        real = torch.float64 if dtype == torch.float64 else torch.float32

        def normal(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def affine(given, channels):
            return (0.5 + torch.rand(channels, generator=generator, dtype=torch.float64), 0.5 * normal(channels)) if given else None

        self.layer, self.dtype = layer, dtype
        self.x = [normal(i.height, i.width, i.channels).to(dtype) for i in layer.inputs]
        self.old = [normal(i.height, i.width, i.channels).to(dtype) for i in layer.inputs]
        self.inner = [affine(i.inner, i.channels) for i in layer.inputs]
        self.outer = [affine(i.outer, i.channels) for i in layer.inputs]
        self.centre = [normal(i.channels) if i.centre else None for i in layer.inputs]
        wide = real if layer.wide else dtype
        inputs, size = sum(i.channels for i in layer.inputs), (*layer.size(), layer.channels)
        self.raw_dtype = wide
        self.weight = (normal(layer.kernel, layer.kernel, inputs, layer.channels) / (layer.kernel * inputs**0.5)).to(real)
        self.bias = normal(layer.channels).to(real) if layer.bias else None
        self.gradient = normal(*size).to(wide)
        self.raw = normal(*size).to(dtype)
        self.coefficients = (affine(True, layer.channels) + (0.3 * normal(layer.channels),)) if layer.coefficients else None
        self.norm = affine(True, layer.channels)  # gamma and beta behind raw


def _window(tensor: Tensor, windows: bool, frames: list[Tensor]) -> Tensor:
    """The tensor itself laid out densely, or the same values inside a larger one whose border is kept for `frames`."""
    if not windows:
        return tensor.clone()
    height, width, channels = tensor.shape
    frame = tensor.new_full((height + 2, width + 3, channels + 5), UNTOUCHED)
    frames.append(frame)
    inside = frame[1 : 1 + height, 2 : 2 + width, 3 : 3 + channels]
    inside.copy_(tensor)
    return inside


def run(problem: Problem, kernels: str, device: str = "cpu") -> dict[str, Tensor]:
    """Every output of forward and backward, back in CPU memory. Fails if anything around a window was written."""
    layer, frames = problem.layer, []
    out: dict[str, Tensor] = {}
    (like,) = conv.numbers(1, torch.empty(0, device=device))

    def numbers(name, channels):
        out[name] = like.new_full((channels,), float("nan"))
        return out[name]

    def there(given):
        """Numbers of the problem as the device wants them."""
        return None if given is None else given.to(like) if isinstance(given, Tensor) else tuple(n.to(like) for n in given)

    def image(tensor):
        return _window(tensor.to(device), layer.windows, frames)

    sources, targets = [], []
    for i, given in enumerate(layer.inputs):
        fold = {"upsample": given.upsample, "inner": there(problem.inner[i]), "outer": there(problem.outer[i]), "slope": given.slope}
        x = image(problem.x[i])
        sources.append(Source(x, **fold))
        if not given.data:
            targets.append(sources[-1])
            continue
        out[f"d_x{i}"] = image(problem.old[i])
        sums = {name: numbers(f"{name}{i}", given.channels) for name in ("sum", "product")} if given.sums else {}
        targets.append(Source(x, **fold, d_x=out[f"d_x{i}"], accumulate=given.accumulate, centre=there(problem.centre[i]), **sums))
    raw = out["raw"] = image(torch.full((*layer.size(), layer.channels), float("nan"), dtype=problem.raw_dtype))
    moments = (numbers("mean", layer.channels), numbers("variance", layer.channels)) if layer.moments else None
    weight, bias = problem.weight.to(device), None if problem.bias is None else problem.bias.to(device)
    fold = Fold(*conv.numbers(layer.channels, weight, 2), *there(problem.norm), NORM_EPS) if layer.moments else None
    conv.forward(sources, weight, raw, bias=bias, moments=moments, fold=fold, kernels=kernels, **layer.geometry)
    if fold is not None:
        check_fold(fold, moments)
    out["d_weight"] = torch.full_like(weight, float("nan"))
    if layer.bias:
        out["d_bias"] = torch.full_like(bias, float("nan"))
    raw_read = image(problem.raw) if layer.coefficients else None
    conv.backward(
        targets, weight, image(problem.gradient), raw=raw_read, coefficients=there(problem.coefficients),
        d_weight=out["d_weight"], d_bias=out.get("d_bias"), kernels=kernels, **layer.geometry,
    )
    for frame in frames:
        inside = frame[1:-1, 2:-1, 3:-2].clone()
        frame[1:-1, 2:-1, 3:-2] = UNTOUCHED
        assert (frame == UNTOUCHED).all(), "written outside a window"
        frame[1:-1, 2:-1, 3:-2] = inside
    return {name: tensor.cpu() for name, tensor in out.items()}


def check_fold(fold: Fold, moments: tuple[Tensor, Tensor]) -> None:
    """gamma (v - mean) / sqrt(variance + eps) + beta of the moments that came with it."""
    mean, variance, gamma, beta, scale, shift = (n.double() for n in (*moments, fold.gamma, fold.beta, fold.scale, fold.shift))
    expected = gamma / (variance + fold.eps).sqrt()
    tolerance = 1e-12 if fold.scale.dtype == torch.float64 else 2e-6
    torch.testing.assert_close(scale, expected, rtol=tolerance, atol=0)
    assert ((shift - (beta - expected * mean)).abs() <= tolerance * ((expected * mean).abs() + beta.abs())).all()


def nearest_tf32(values: Tensor) -> Tensor:
    """float64 values rounded to 10 mantissa bits behind the leading one, ties away from zero."""
    part, exponent = torch.frexp(values)
    return torch.ldexp(part.sign() * torch.floor(part.abs() * 2**11 + 0.5) / 2**11, exponent)


def exact(problem: Problem, operand: Callable[[Tensor], Tensor] | None = None) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Outputs in float64, and the size that each would have by the random walk of its terms (what errors are relative to).

    operand: what becomes of the two operands of each of the three products, as hardware rounds them.
    """

    def rounded(tensor):  # its gradient is that of the tensor
        return tensor if operand is None else tensor + (operand(tensor.detach()) - tensor.detach())

    layer = problem.layer
    weight = problem.weight.double().permute(3, 2, 0, 1).requires_grad_()
    leaves, activations, parts = [], [], []
    for i, given in enumerate(layer.inputs):
        x = problem.x[i].to(torch.float64, copy=True)
        value = x if problem.inner[i] is None else x * problem.inner[i][0] + problem.inner[i][1]
        if problem.outer[i] is None:
            value.requires_grad_()
            leaves.append(value)
            activations.append(x.detach() - (0 if problem.centre[i] is None else problem.centre[i]))
            value = F.leaky_relu(value, given.slope)
        else:
            activations.append(F.leaky_relu(value, given.slope))
            value = (activations[-1] * problem.outer[i][0] + problem.outer[i][1]).requires_grad_()
            leaves.append(value)
        nchw = value.permute(2, 0, 1)[None]
        if given.upsample == "nearest":
            nchw = nchw.repeat_interleave(2, 2).repeat_interleave(2, 3)
        elif given.upsample == "bilinear":
            nchw = F.interpolate(nchw, scale_factor=2, mode="bilinear", align_corners=False)
        parts.append(nchw)
    image = torch.cat(parts, 1)
    if layer.padding == "reflection" and layer.pad:
        image = F.pad(image, (layer.pad,) * 4, mode="reflect")
    bias = None if problem.bias is None else problem.bias.double().requires_grad_()
    pad = layer.pad if layer.padding == "zero" else 0
    y = F.conv2d(rounded(image), rounded(weight), bias, stride=layer.stride, padding=pad)[0].permute(1, 2, 0)
    d_raw = problem.gradient.double()
    if problem.coefficients is not None:
        a, b, c = problem.coefficients
        d_raw = a * d_raw + b * problem.raw.double() + c
    y.backward(rounded(d_raw))

    raw = y.detach()
    out = {"raw": raw, "d_weight": weight.grad.permute(2, 3, 1, 0)}

    def rms(tensor):
        return float(tensor.detach().square().mean().sqrt())

    pixels, taps = raw.shape[0] * raw.shape[1], layer.kernel**2
    reach = rms(image) * rms(weight) * (taps * image.shape[1]) ** 0.5
    back = rms(d_raw) * rms(weight) * (taps * layer.channels) ** 0.5
    size = {"raw": reach, "d_weight": rms(image) * rms(d_raw) * pixels**0.5}
    if layer.moments:
        out["mean"], out["variance"] = raw.mean((0, 1)), raw.var((0, 1), unbiased=False)
        size["mean"], size["variance"] = reach, reach**2
    if bias is not None:
        out["d_bias"], size["d_bias"] = bias.grad, rms(d_raw) * pixels
    for i, given in enumerate(layer.inputs):
        if not given.data:
            continue
        g = leaves[i].grad + (problem.old[i].double() if given.accumulate else 0)
        out[f"d_x{i}"], size[f"d_x{i}"] = g, back + (1 if given.accumulate else 0)
        if given.sums:
            out[f"sum{i}"], out[f"product{i}"] = g.sum((0, 1)), (g * activations[i]).sum((0, 1))
            size[f"sum{i}"] = size[f"d_x{i}"] * given.height * given.width
            size[f"product{i}"] = size[f"sum{i}"] * (rms(activations[i]) + 1)
    return out, size
