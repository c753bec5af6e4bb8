"""Downsampling by a separable filter with replicated borders, as an autograd function over the native op (csrc/ops/resample).

    along each axis:  out[i] = sum_t taps[t] * image[clamp(factor * i - before + t)],   i = 0 .. ceil(size / factor) - 1
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, pad

from dipengine.errors import InputError
from dipengine.kernels import backend, pool, workspace
from dipengine.kernels.backend import native


def downsample(image: Tensor, taps: Tensor, factor: int, before: int, *, kernels: str = "auto") -> Tensor:
    """[1, C, H, W] -> [1, C, ceil(H / factor), ceil(W / factor)], differentiable in `image`.

    image: float32 or float64 (native on a CUDA device: float32). taps: [n] of any dtype, rounded to the image's; before:
    samples that the first output reads in front of the first one. Raises InputError for other shapes.
    """
    if image.dim() != 4 or image.shape[0] != 1 or factor < 1:
        raise InputError(f"An image {tuple(image.shape)} cannot be made {factor} times smaller; give [1, C, H, W] and 1 or more.")
    if backend.choose(kernels, image, on_cuda=image.dtype == torch.float32) == "native":
        return _Downsample.apply(image, taps, factor, before)
    taps = taps.to(image)
    rows, columns = (_padding(size, len(taps), factor, before) for size in image.shape[2:])
    padded = pad(image.contiguous(), (*columns, *rows), mode="replicate")
    channels = image.shape[1]
    along_x = taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    along_y = taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    small = conv2d(padded, along_x, stride=(1, factor), groups=channels)
    return conv2d(small, along_y, stride=(factor, 1), groups=channels)


def _padding(size: int, taps: int, factor: int, before: int) -> tuple[int, int]:
    """Replicated samples before and after a side of `size`, so that ceil(size / factor) outputs come out."""
    outputs = -(-size // factor)
    return before, max((outputs - 1) * factor + taps - before - size, 0)


class _Downsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, taps, factor, before):
        ctx.shape = image.shape
        # In CPU memory the op rounds the taps itself.
        ctx.taps = (taps.to(torch.float64) if backend.device_type(image) == "cpu" else taps.to(image)).contiguous()
        ctx.filter = factor, before
        _, channels, height, width = image.shape
        out = image.new_empty(-(-height // factor), -(-width // factor), channels)
        native.downsample(_pixels(image), ctx.taps, factor, before, out, workspace.beside(image), pool.get())
        return out.permute(2, 0, 1)[None]

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        _, channels, height, width = ctx.shape
        d_image = d_out.new_empty(height, width, channels)
        native.downsample_backward(_pixels(d_out), ctx.taps, *ctx.filter, d_image, workspace.beside(d_out), pool.get())
        return d_image.permute(2, 0, 1)[None], None, None, None


def _pixels(image: Tensor) -> Tensor:
    return image.detach()[0].permute(1, 2, 0).contiguous()
