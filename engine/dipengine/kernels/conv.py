"""The generator's convolutions with everything between two raw outputs folded in, and the norm passes between them.

    raw = bias + sum over sources of conv(pad(upsample(outer(leaky_relu(inner(x))))), weight)

inner and outer are per-channel affine maps: the BatchNorm of the convolution that wrote x, and the BatchNorm of the
concatenation that x stands in. Native ops never store anything normalised, upsampled or concatenated, and do an
upsampled source in nine products a low-resolution pixel instead of 36 (csrc/ops/conv/conv.h says how, and what
`backward` computes); the twins say the same in plain PyTorch, with autograd for the gradients.

Images are [H, W, C] with channels contiguous, float32, bfloat16 or (in CPU memory) float64; weights [k, k, in, out] and biases
[out] in float32 (float64 beside float64); per-channel numbers as `numbers` makes them. Outputs are written into tensors that the
caller gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dipengine.kernels import backend, pool, workspace
from dipengine.kernels.backend import native

UPSAMPLE = {"none": 0, "nearest": 1, "bilinear": 2}
PADDING = {"reflection": 0, "zero": 1}
Affine = tuple[Tensor, Tensor]  # scale and shift, numbers [C]
Triple = tuple[Tensor, Tensor, Tensor]  # A, B, C of d_raw = A g + B raw + C, numbers [C]


def numbers(channels: int, beside: Tensor, count: int = 1) -> tuple[Tensor, ...]:
    """`count` tensors of one number a channel, not yet set, on the device of `beside`: float64 in CPU memory, float32 elsewhere,
    where kernels merge their parts by differences from means and consumer GPUs have next to no float64."""
    dtype = torch.float64 if backend.device_type(beside) == "cpu" else torch.float32
    return tuple(torch.empty(count, channels, dtype=dtype, device=beside.device).unbind())


@dataclass(frozen=True)
class Source:
    """What a convolution reads, and in `backward` where its gradient goes.

    x: [H, W, C]. upsample: "none", "nearest" or "bilinear" (x2). slope: of the leaky ReLU behind inner (1: none; at most 1 on
    CUDA).
    d_x: [H, W, C], written: without outer leaky_relu'(inner(x)) * du, else du, the gradient behind outer at x's own
    resolution. accumulate: add to what d_x holds. sum, product: numbers [C], written: the sums over pixels of d_x and of
    d_x * (x - centre), or with outer of d_x * leaky_relu(inner(x)).
    """

    x: Tensor
    upsample: str = "none"
    inner: Affine | None = None
    outer: Affine | None = None
    slope: float = 1.0
    d_x: Tensor | None = None
    accumulate: bool = False
    centre: Tensor | None = None
    sum: Tensor | None = None
    product: Tensor | None = None

    def _native(self):
        return native.Source(
            self.x, upsample=UPSAMPLE[self.upsample], inner=self.inner, outer=self.outer, slope=self.slope, d_x=self.d_x,
            accumulate=self.accumulate, centre=self.centre, sum=self.sum, product=self.product,
        )


@dataclass(frozen=True)
class Fold:
    """The norm behind an output as scale * v + shift, numbers [C], written along with its moments.

    gamma, beta: [C] in any dtype; beta None: 0.
    """

    scale: Tensor
    shift: Tensor
    gamma: Tensor
    beta: Tensor | None
    eps: float

    def _native(self) -> dict:
        gamma, beta = (None if given is None else given.to(self.scale.dtype) for given in (self.gamma, self.beta))
        return {"scale": self.scale, "shift": self.shift, "gamma": gamma, "beta": beta, "eps": self.eps}

    def write(self, moments: tuple[Tensor, Tensor]) -> None:
        """The twin: gamma (v - mean) / sqrt(variance + eps) + beta."""
        mean, variance = moments
        torch.div(self.gamma.to(mean.dtype), torch.sqrt(variance + self.eps), out=self.scale)
        torch.mul(-self.scale, mean, out=self.shift)
        if self.beta is not None:
            self.shift.add_(self.beta.to(mean.dtype))


def forward(
    sources: list[Source],
    weight: Tensor,
    raw: Tensor,
    *,
    stride: int = 1,
    pad: int = 0,
    padding: str = "reflection",
    bias: Tensor | None = None,
    moments: tuple[Tensor, Tensor] | None = None,
    fold: Fold | None = None,
    kernels: str = "auto",
) -> None:
    """Write raw [H, W, out] and, where `moments` are given, its mean and biased variance, numbers [out], and the `fold`.

    One or two sources, at most one upsampled (kernel 3, stride 1, pad 1 then). raw may be float32 beside bfloat16.
    Raises InputError for what does not fit.
    """
    if _runs_native(raw, kernels):
        mean, variance = moments or (None, None)
        native.conv_forward(
            [s._native() for s in sources], weight, raw, stride=stride, pad=pad, padding=PADDING[padding], bias=bias,
            mean=mean, variance=variance, **(fold._native() if fold else {}), workspace=workspace.beside(raw), pool=pool.get(),
        )
        return
    with torch.no_grad():
        raw.copy_(_convolve([_behind_outer(s) for s in sources], sources, weight, bias, stride, pad, padding))
        if moments is not None:
            moments[0].copy_(raw.double().mean((0, 1)))
            moments[1].copy_(raw.double().var((0, 1), unbiased=False))
        if fold is not None:
            fold.write(moments)


def backward(
    sources: list[Source],
    weight: Tensor,
    gradient: Tensor,
    *,
    raw: Tensor | None = None,
    coefficients: Triple | None = None,
    stride: int = 1,
    pad: int = 0,
    padding: str = "reflection",
    d_weight: Tensor | None = None,
    d_bias: Tensor | None = None,
    kernels: str = "auto",
) -> None:
    """From d_raw = A gradient + B raw + C (gradient itself without coefficients): d_weight, d_bias, each source's d_x."""
    if _runs_native(gradient, kernels):
        native.conv_backward(
            [s._native() for s in sources], weight, gradient, raw=raw, coefficients=coefficients, stride=stride, pad=pad,
            padding=PADDING[padding], d_weight=d_weight, d_bias=d_bias, workspace=workspace.beside(gradient), pool=pool.get(),
        )
        return
    d_raw = gradient.to(weight.dtype)
    if coefficients is not None:
        a, b, c = (number.to(weight.dtype) for number in coefficients)
        d_raw = a * d_raw + b * raw.to(weight.dtype) + c
    with torch.enable_grad():
        behind = [_behind_outer(s).detach().requires_grad_() for s in sources]
        leaf = weight.detach().requires_grad_()
        out = _convolve(behind, sources, leaf, None, stride, pad, padding)
        # Products at the images' precision, as where the convolution itself would have rounded its operands.
        gradients = torch.autograd.grad(out, [leaf, *behind], d_raw.to(out.dtype))
    if d_weight is not None:
        d_weight.copy_(gradients[0])
    if d_bias is not None:
        d_bias.copy_(d_raw.sum((0, 1)))
    for source, du in zip(sources, gradients[1:]):
        if source.d_x is not None:
            _store_gradient(source, du)


def norm_statistics(
    source: Source, moments: tuple[Tensor, Tensor], *, fold: Fold | None = None, kernels: str = "auto"
) -> None:
    """Mean and biased variance, numbers [C], of upsample(leaky_relu(inner(x))), and the `fold` of a norm behind it."""
    if _runs_native(source.x, kernels):
        native.norm_statistics(
            source._native(), mean=moments[0], variance=moments[1], **(fold._native() if fold else {}),
            workspace=workspace.beside(source.x), pool=pool.get(),
        )
        return
    v = _upsample(_activation(source).double(), source.upsample)
    moments[0].copy_(v.mean((0, 1)))
    moments[1].copy_(v.var((0, 1), unbiased=False))
    if fold is not None:
        fold.write(moments)


def norm_apply(source: Source, y: Tensor, *, kernels: str = "auto") -> None:
    """Write y = leaky_relu(inner(x)), [H, W, C]; on a CUDA device the twin's alone, as convolutions there need it nowhere."""
    if backend.choose(kernels, source.x, on_cuda=False) == "native":
        native.norm_apply(source._native(), y=y, workspace=workspace.get(), pool=pool.get())
    else:
        y.copy_(_activation(source))


def norm_backward(source: Source, g: Tensor, coefficients: Triple | None = None, *, kernels: str = "auto") -> None:
    """Write source.d_x = leaky_relu'(inner(x)) * d_t, sum and product, from g [H, W, C] (may be d_x itself).

    d_t = A g + B (U^T U t) + C (U^T 1) with U the source's upsampling and t = leaky_relu(inner(x)); g where no
    coefficients are given.
    """
    if _runs_native(source.x, kernels):
        native.norm_backward(
            source._native(), g=g, coefficients=coefficients, workspace=workspace.beside(source.x), pool=pool.get()
        )
        return
    real = torch.float64 if g.dtype == torch.float64 else torch.float32
    d_t = g.to(real)
    if coefficients is not None:
        a, b, c = (number.to(real) for number in coefficients)
        with torch.enable_grad():
            t = _activation(source).to(real).detach().requires_grad_()
            v = _upsample(t, source.upsample)
            (rest,) = torch.autograd.grad(v, t, b * v.detach() + c)
        d_t = a * d_t + rest
    _store_gradient(source, d_t)


def norm_fold_gradient(
    count: int, moments: tuple[Tensor, Tensor], gamma: Tensor, eps: float, total: Tensor, product: Tensor, *, centred: bool,
    kernels: str = "auto",
) -> tuple[Triple, Tensor, Tensor]:
    """A norm's backward: ((A, B, C), d_gamma, d_beta), numbers [C]. See csrc/ops/norm/norm.h.

    total, product: the sums of g and of g * (v - mean) (g * v where not `centred`) over the `count` values behind it.
    """
    if backend.choose(kernels, total) == "native":
        a, b, c, d_gamma, d_beta = numbers(total.numel(), total, 5)
        native.norm_fold_gradient(
            count=count, mean=moments[0], variance=moments[1], gamma=gamma.to(a.dtype), eps=eps, sum=total, product=product,
            centred=centred, coefficients=[a, b, c], d_gamma=d_gamma, d_beta=d_beta,
        )
        return (a, b, c), d_gamma, d_beta
    mean, variance = moments
    inverse = torch.rsqrt(variance + eps)
    product = product if centred else product - mean * total
    a = gamma.to(mean.dtype) * inverse
    b = -a * product * inverse**2 / count
    return (a, b, -a * total / count - b * mean), product * inverse, total


def runs_on_cuda(dtype: torch.dtype) -> bool:
    """Whether the CUDA kernels take images of that dtype."""
    return dtype in (torch.float32, torch.bfloat16)


def _runs_native(image: Tensor, kernels: str) -> bool:
    return backend.choose(kernels, image, on_cuda=runs_on_cuda(image.dtype)) == "native"


def _store_gradient(source: Source, du: Tensor) -> None:
    """The twin of what the native ops do with a row of du."""
    if source.outer is not None:
        g, other = du, _activation(source)
    else:
        inner = _inner(source)
        g = torch.where(inner > 0, du, du * source.slope)
        other = source.x.to(du.dtype) - (0 if source.centre is None else source.centre.to(du.dtype))
    if source.accumulate:
        g = g + source.d_x.to(g.dtype)
    if source.sum is not None:
        source.sum.copy_(g.double().sum((0, 1)))
        source.product.copy_((g.double() * other.double()).sum((0, 1)))
    source.d_x.copy_(g)


def _inner(source: Source) -> Tensor:
    real = torch.float64 if source.x.dtype == torch.float64 else torch.float32
    x = source.x.to(real)
    return x if source.inner is None else x * source.inner[0].to(real) + source.inner[1].to(real)


def _activation(source: Source) -> Tensor:
    return F.leaky_relu(_inner(source), source.slope)


def _behind_outer(source: Source) -> Tensor:
    """[H, W, C], rounded to the images' dtype as an operand of a product is."""
    t = _activation(source)
    if source.outer is not None:
        t = t * source.outer[0].to(t.dtype) + source.outer[1].to(t.dtype)
    return t.to(source.x.dtype)


def _upsample(image: Tensor, mode: str) -> Tensor:
    if mode == "none":
        return image
    nchw = image.permute(2, 0, 1)[None]
    up = F.interpolate(nchw, scale_factor=2, mode=mode, align_corners=False if mode == "bilinear" else None)
    return up[0].permute(1, 2, 0)


def _convolve(images, sources, weight, bias, stride, pad, padding) -> Tensor:
    x = torch.cat([_upsample(image, s.upsample) for image, s in zip(images, sources)], dim=2).permute(2, 0, 1)[None]
    if pad:
        x = F.pad(x, (pad,) * 4, mode="reflect" if padding == "reflection" else "constant")
    y = F.conv2d(x, weight.to(x.dtype).permute(3, 2, 0, 1), None if bias is None else bias.to(x.dtype), stride=stride)
    return y[0].permute(1, 2, 0)
