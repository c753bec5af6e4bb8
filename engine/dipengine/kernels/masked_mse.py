"""Masked mean squared error behind the output activation, with the output average and the stopping statistic.

    x = act(raw);  loss = sum mask * (x - target)^2 / (C h w);  average and ES-EMV mean are updated with x

The native op does all of it, gradient included, in one pass over memory (csrc/ops/masked_mse); the twin says the same
in plain PyTorch. The mean is over all elements, masked ones counted, as the authors of the deep image prior have it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dipengine.errors import InputError
from dipengine.kernels import backend, pool, workspace
from dipengine.kernels.backend import native
from dipengine.kernels.statistics import OutputStatistics

__all__ = ["OutputStatistics", "masked_mse", "track"]

ACTIVATIONS = ("sigmoid", "none")
_REAL = {torch.float32: torch.float32, torch.bfloat16: torch.float32, torch.float64: torch.float64}


def masked_mse(
    raw: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    activation: str = "sigmoid",
    window: tuple[int, int] | None = None,
    statistics: OutputStatistics | None = None,
    kernels: str = "auto",
) -> Tensor:
    """The loss, a 0-dim tensor (float32; float64 for float64 input), differentiable with respect to raw alone.

    raw: [1, C, H, W] float32, bfloat16 or float64, before the activation ("sigmoid" or "none").
    target: [1, C, h, w] float32 (float64 beside float64). mask: [1, 1 or C, h, w], weights of the same dtype, usually 0
    and 1; None is all ones. window: (h, w), the upper left part of the canvas that is compared, by default all of it;
    the gradient outside is exactly zero. statistics: updated with x over the window, whose size it must have.
    Native takes CPU tensors, and on a CUDA device that the core has kernels for float32 and bfloat16, fastest in channels_last
    order; "auto" takes the twin elsewhere. On a CUDA device `statistics` costs a wait for the device.
    Raises InputError for shapes, dtypes and words that do not fit.
    """
    _check(raw, target, mask, activation, window, statistics)
    height, width = window or raw.shape[2:]
    if _use_native(raw, kernels):
        return _MaskedMse.apply(raw, target, mask, activation, height, width, statistics)
    x = _activate(raw[:, :, :height, :width], activation)
    square = (x - target).square()
    if mask is not None:
        square = mask * square
    if statistics is not None:
        _update(statistics, x.detach())
    return square.sum() / target.numel()


def track(
    raw: Tensor,
    *,
    activation: str = "sigmoid",
    window: tuple[int, int] | None = None,
    statistics: OutputStatistics,
    kernels: str = "auto",
) -> None:
    """Update `statistics` with x = act(raw) over the window: `masked_mse` without a loss. Arguments as there."""
    _check(raw, None, None, activation, window, statistics)
    height, width = window or raw.shape[2:]
    raw = raw.detach()
    if _use_native(raw, kernels):
        _run_native(raw, None, None, activation, height, width, statistics, None)
    else:
        _update(statistics, _activate(raw[:, :, :height, :width], activation))


def _use_native(raw: Tensor, kernels: str) -> bool:
    return backend.choose(kernels, raw, on_cuda=raw.dtype != torch.float64) == "native"


def _activate(raw: Tensor, activation: str) -> Tensor:
    x = raw.to(_REAL[raw.dtype])
    return torch.sigmoid(x) if activation == "sigmoid" else x


def _update(statistics: OutputStatistics, x: Tensor) -> None:
    """The twin of the op's statistics. Sums in float64."""
    if statistics.frames == 0:
        statistics.average.copy_(x)
        statistics.es_mean.copy_(x)
        statistics.tick(0.0)
        return
    d2 = (x - statistics.es_mean).square().mean(dtype=torch.float64)
    statistics.average.lerp_(x, 1 - statistics.decay)
    statistics.es_mean.lerp_(x, statistics.es_alpha)
    statistics.tick(d2.item())


class _MaskedMse(torch.autograd.Function):
    """The native op; the gradient comes with the loss and waits for backward."""

    @staticmethod
    def forward(ctx, raw, target, mask, activation, height, width, statistics):
        d_raw = None
        if ctx.needs_input_grad[0]:
            full = (height, width) == tuple(raw.shape[2:])
            d_raw = torch.empty_like(raw) if full else torch.zeros_like(raw)
        loss, d_raw = _run_native(raw.detach(), target.detach(), mask, activation, height, width, statistics, d_raw)
        ctx.save_for_backward(d_raw)
        return loss[0].to(_REAL[raw.dtype])

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss):
        (d_raw,) = ctx.saved_tensors
        # loss.backward() hands over 1: no pass over the image for that. (On a device, to know would mean to wait for it.)
        scaled = d_raw if d_loss.is_cpu and d_loss.item() == 1.0 else d_raw * d_loss
        return scaled, None, None, None, None, None, None


def _run_native(
    raw: Tensor,
    target: Tensor | None,
    mask: Tensor | None,
    activation: str,
    height: int,
    width: int,
    statistics: OutputStatistics | None,
    d_raw: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Call the op. Returns the loss, float64 [1], and d_raw (another tensor where the given one's layout did not do)."""
    # The running averages are kept in channels_last, so whatever comes in another layout is copied into that.
    # On a device there is no other.
    on_cpu = backend.device_type(raw) == "cpu"
    nchw = on_cpu and statistics is None and raw.is_contiguous() and (target is None or target.is_contiguous())

    def rows(tensor: Tensor | None) -> Tensor | None:
        """[1, C, H, W] -> the window as [fits, outer, rows, inner...]: [1, C, h, w] or [1, 1, h, w, C]."""
        if tensor is None:
            return None
        if nchw:
            return tensor[:, :, :height, :width]
        return tensor.permute(0, 2, 3, 1)[:, :height, :width].unsqueeze(1)

    def ordered(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or nchw:
            return tensor if tensor is None else tensor.contiguous()
        return tensor.contiguous(memory_format=torch.channels_last)

    d_raw = ordered(d_raw)
    raw_rows = rows(ordered(raw))
    sums = torch.empty(2, dtype=torch.float64, device=raw.device)
    place = _on_cpu(raw_rows, sums, statistics) if on_cpu else _on_cuda(raw, sums, statistics)
    native.masked_mse(
        raw_rows,
        target=rows(ordered(target)),
        mask=rows(ordered(mask)),
        d_raw=rows(d_raw),
        average=None if statistics is None else rows(statistics.average),
        es_mean=None if statistics is None else rows(statistics.es_mean),
        sigmoid=activation == "sigmoid",
        normaliser=[float(raw.shape[1] * height * width)],
        average_decay=0.0 if statistics is None else statistics.decay,
        es_alpha=0.1 if statistics is None else statistics.es_alpha,
        loss=sums[:1],
        **place,
    )
    if statistics is not None and on_cpu:
        statistics.tick(sums[1].item())
    elif statistics is not None:
        statistics.es_variance = sums[1].item()
        statistics.frames += 1
    return sums[:1], d_raw


def _on_cpu(raw_rows: Tensor, sums: Tensor, statistics: OutputStatistics | None) -> dict:
    """What the op takes for tensors in CPU memory alone; sums[1] becomes the mean squared distance from es_mean."""
    first = statistics is not None and statistics.frames == 0
    memory = torch.empty(native.masked_mse_workspace(raw_rows), dtype=torch.uint8)
    return {"first_frame": [1] if first else None, "d2": sums[1:], "workspace": memory, "pool": pool.get()}


def _on_cuda(raw: Tensor, sums: Tensor, statistics: OutputStatistics | None) -> dict:
    """What the op takes for CUDA tensors alone; sums[1] becomes es_variance, which it counts on itself."""
    sums[1].fill_(0.0 if statistics is None else statistics.es_variance)
    frames = torch.full((1,), 0 if statistics is None else statistics.frames, dtype=torch.int64, device=raw.device)
    return {"frames": frames, "es_variance": sums[1:], "workspace": workspace.allocator(raw)}


def _check(raw, target, mask, activation, window, statistics) -> None:
    if activation not in ACTIVATIONS:
        raise InputError(f"There is no activation {activation!r}; choose sigmoid or none.")
    if raw.dim() != 4 or raw.shape[0] != 1 or raw.dtype not in _REAL:
        raise InputError(f"raw is {tuple(raw.shape)} in {raw.dtype}; it must be [1, C, H, W] in float32, bfloat16 or float64.")
    channels, canvas = raw.shape[1], tuple(raw.shape[2:])
    height, width = window or canvas
    if not (1 <= height <= canvas[0] and 1 <= width <= canvas[1]):
        raise InputError(f"The window {height} x {width} does not lie in the canvas {canvas[0]} x {canvas[1]}.")
    real = _REAL[raw.dtype]
    if target is not None and (tuple(target.shape) != (1, channels, height, width) or target.dtype != real):
        raise InputError(f"The target is {tuple(target.shape)} in {target.dtype} where {(1, channels, height, width)} in "
                         f"{real} is needed.")
    if mask is not None:
        shapes = ((1, 1, height, width), (1, channels, height, width))
        if tuple(mask.shape) not in shapes or mask.dtype != real:
            raise InputError(f"The mask is {tuple(mask.shape)} in {mask.dtype} where {shapes[0]} in {real} is needed.")
    if statistics is not None:
        average = statistics.average
        if tuple(average.shape) != (1, channels, height, width) or average.dtype != real:
            raise InputError(f"The statistics are {tuple(average.shape)} in {average.dtype} where "
                             f"{(1, channels, height, width)} in {real} is needed.")
