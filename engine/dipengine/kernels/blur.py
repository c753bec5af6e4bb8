"""Blur by a known kernel, "valid" part only, as an autograd function over the native op (csrc/ops/blur).

    out[i, j] = sum_{a, b} kernel[a, b] * image[i + kh - 1 - a, j + kw - 1 - b]
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d

from dipengine.errors import InputError
from dipengine.kernels import backend, pool, workspace
from dipengine.kernels.backend import native


def blur(image: Tensor, kernel: Tensor, *, kernels: str = "auto") -> Tensor:
    """[1, C, h + kh - 1, w + kw - 1] -> [1, C, h, w], differentiable in `image`.

    image: float32 or float64 (native on a CUDA device: float32). kernel: [kh, kw] of any dtype, rounded to the image's.
    Raises InputError for other shapes, and for a kernel larger than the image.
    """
    fits = image.dim() == 4 and image.shape[0] == 1 and kernel.dim() == 2
    if not (fits and all(k <= n for k, n in zip(kernel.shape, image.shape[2:]))):
        raise InputError(f"An image {tuple(image.shape)} cannot be blurred by a kernel {tuple(kernel.shape)}; give [1, C, H, W] "
                         "and [kh, kw], no larger than the image.")
    if backend.choose(kernels, image, on_cuda=image.dtype == torch.float32) == "native":
        return _Blur.apply(image, kernel)
    channels = image.shape[1]
    return conv2d(image, kernel.to(image).flip(0, 1).expand(channels, 1, -1, -1), groups=channels)


class _Blur(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, kernel):
        # In CPU memory the op rounds the kernel itself.
        on_cpu = backend.device_type(image) == "cpu"
        ctx.kernel = (kernel.to(torch.float64) if on_cpu else kernel.to(image)).contiguous()
        ctx.shape = image.shape
        _, channels, height, width = image.shape
        out = image.new_empty(height - kernel.shape[0] + 1, width - kernel.shape[1] + 1, channels)
        native.blur(_pixels(image), ctx.kernel, out, workspace.beside(image), pool.get())
        return out.permute(2, 0, 1)[None]

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        _, channels, height, width = ctx.shape
        d_image = d_out.new_empty(height, width, channels)
        native.blur_backward(_pixels(d_out), ctx.kernel, d_image, workspace.beside(d_out), pool.get())
        return d_image.permute(2, 0, 1)[None], None


def _pixels(image: Tensor) -> Tensor:
    return image.detach()[0].permute(1, 2, 0).contiguous()
