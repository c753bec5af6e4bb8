"""A counting sensor's negative log-likelihood as an autograd function over the native op (csrc/ops/deviance says the formulas;
noise.likelihood says why they are these).

With e, k = scale * x + shift the electrons of image and target and v(e) = max(e, floor) + read_variance, the mean over the known
elements of D(k, e) = 2 integral_k^e (t - k) / v(t) dt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dipengine.errors import InputError
from dipengine.kernels import backend, pool, workspace
from dipengine.kernels.backend import native

ALLOWANCE = 2  # standard deviations that the bright elements' mean squared residual may lie above 1


@dataclass(frozen=True)
class Electrons:
    """scale * x + shift electrons for an image in [0, 1]; read_variance in electrons squared, floor in electrons."""

    scale: float
    shift: float
    read_variance: float
    floor: float


def deviance(image: Tensor, target: Tensor, mask: Tensor | None, electrons: Electrons, *, kernels: str = "auto") -> Tensor:
    """The mean deviance over the known elements, a 0-dim tensor of the image's dtype, differentiable in `image`.

    image, target: [1, C, h, w], float32 or float64 (native on a CUDA device: float32); mask: [1, 1, h, w] of 0 and 1 in the
    same dtype, None for all. Raises InputError for other shapes.
    """
    _check(image, target, mask)
    if _native(image, kernels):
        return _Deviance.apply(image, target, mask, electrons)
    e, k = (x * electrons.scale + electrons.shift for x in (image, target))
    floor, r2 = electrons.floor, electrons.read_variance
    e_high, k_high = e.clamp(min=floor), k.clamp(min=floor)
    # (k + r^2) log((e + r^2) / (k + r^2)) through log1p: bright pixels would cancel otherwise.
    step = e_high - k_high
    above = 2 * (step - (k + r2) * (step / (k_high + r2)).log1p())
    below = (e.clamp(max=floor) - k).square() - (k.clamp(max=floor) - k).square()
    return _mean(above + below / (floor + r2), mask)


def discrepancy(image: Tensor, target: Tensor, mask: Tensor | None, electrons: Electrons, *, kernels: str = "auto") -> float:
    """The mean squared residual in variances of the noise, over all known elements or over the bright ones less their allowance,
    whichever is larger. Arguments as in `deviance`.
    """
    _check(image, target, mask)
    if _native(image, kernels):
        return float(_run(image, target, mask, electrons, None)[1])
    e, k = (x.double() * electrons.scale + electrons.shift for x in (image, target))
    light = e.clamp(min=electrons.floor)
    squares, shares = (e - k).square() / (light + electrons.read_variance), light**3
    if mask is not None:
        shares = shares * mask
    allowance = ALLOWANCE * math.sqrt(2 * shares.square().sum().item())
    bright = ((squares * shares).sum().item() - allowance) / shares.sum().item()
    return max(_mean(squares, mask).item(), bright)


def _native(image: Tensor, kernels: str) -> bool:
    return backend.choose(kernels, image, on_cuda=image.dtype == torch.float32) == "native"


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean()
    return (values * mask).sum() / (mask.sum() * (values.numel() / mask.numel()))


class _Deviance(torch.autograd.Function):
    """The gradient comes with the loss and waits for backward."""

    @staticmethod
    def forward(ctx, image, target, mask, electrons):
        d_image = image.new_empty(*image.shape[2:], image.shape[1]) if ctx.needs_input_grad[0] else None
        loss = _run(image, target, mask, electrons, d_image)[0]
        ctx.save_for_backward(d_image)
        return torch.as_tensor(loss, dtype=image.dtype, device=image.device)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss):
        (d_image,) = ctx.saved_tensors
        return (d_image * d_loss).permute(2, 0, 1)[None], None, None, None


def _run(image: Tensor, target: Tensor, mask: Tensor | None, electrons: Electrons, d_image: Tensor | None):
    """(loss, discrepancy), numbers or, of CUDA tensors, float64 tensors there."""
    on_cpu = backend.device_type(image) == "cpu"
    result = None if on_cpu else torch.empty(2, dtype=torch.float64, device=image.device)
    numbers = native.deviance(
        _pixels(image), _pixels(target), scale=electrons.scale, shift=electrons.shift, read_variance=electrons.read_variance,
        floor=electrons.floor, normaliser=float(image.numel() if mask is None else mask.sum() * image.shape[1]),
        mask=None if mask is None else _pixels(mask), d_image=d_image, result=result, workspace=workspace.beside(image),
        pool=pool.get(),
    )
    return numbers if on_cpu else result


def _pixels(image: Tensor) -> Tensor:
    return image.detach()[0].permute(1, 2, 0).contiguous()


def _check(image: Tensor, target: Tensor, mask: Tensor | None) -> None:
    if image.dim() != 4 or image.shape[0] != 1 or target.shape != image.shape:
        raise InputError(f"Image and target are {tuple(image.shape)} and {tuple(target.shape)}; both must be [1, C, h, w].")
    if mask is not None and tuple(mask.shape) != (1, 1, *image.shape[2:]):
        raise InputError(f"The mask is {tuple(mask.shape)}; it must be {(1, 1, *image.shape[2:])}.")
