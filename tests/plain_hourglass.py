"""The paper's hourglass written plainly in torch.nn modules: the oracle of the tests and a peer for benchmarks.

It shares nothing with the engine's own network but the architecture's description. Module names are those of the
authors' `skip` network (children numbered from 1, convolution blocks from 0), so either's weights load into the other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dipengine.generators.architecture import Hourglass


def plain_hourglass(architecture: Hourglass) -> nn.Module:
    """The network, raw logits out, initialised by PyTorch's defaults from its global generator."""
    network = _level(architecture, 0)
    head = _Convolution(architecture, architecture.channels_up[0], architecture.output_channels, 1)
    network.add_module(str(len(network) + 1), head)
    return network


class _Pad(nn.Module):
    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, [self.pixels] * 4, mode="reflect") if self.pixels else x


class _Upsample(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.mode == "nearest":
            return F.interpolate(x, size=(2 * height, 2 * width), mode="nearest")
        return F.interpolate(x, size=(2 * height, 2 * width), mode="bilinear", align_corners=False)


class _Convolution(nn.Sequential):
    """Pad, convolve, and average where asked."""

    def __init__(self, architecture: Hourglass, enter: int, out: int, kernel: int, halve: bool = False) -> None:
        stride = 2 if halve and architecture.downsample == "stride" else 1
        if architecture.padding == "reflection":
            steps = [_Pad((kernel - 1) // 2), nn.Conv2d(enter, out, kernel, stride)]
        else:
            steps = [nn.Conv2d(enter, out, kernel, stride, padding=(kernel - 1) // 2)]
        if halve and architecture.downsample == "average":
            steps.append(nn.AvgPool2d(2))
        super().__init__(*steps)


class _SideBySide(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.add_module("0", first)
        self.add_module("1", second)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], dim=1)


def _numbered(*steps: nn.Module) -> nn.Sequential:
    chain = nn.Sequential()
    for number, step in enumerate(steps, start=1):
        chain.add_module(str(number), step)
    return chain


def _block(architecture: Hourglass, enter: int, out: int, kernel: int, halve: bool = False) -> list[nn.Module]:
    return [
        _Convolution(architecture, enter, out, kernel, halve),
        nn.BatchNorm2d(out),
        nn.LeakyReLU(architecture.negative_slope),
    ]


def _level(architecture: Hourglass, i: int) -> nn.Sequential:
    a, deepest = architecture, i == len(architecture.channels_down) - 1
    enter = a.channels_down[i - 1] if i else a.input_depth
    down, up, skip = a.channels_down[i], a.channels_up[i], a.channels_skip[i]
    deeper = _block(a, enter, down, a.kernel_down[i], halve=True) + _block(a, down, down, a.kernel_down[i])
    if not deepest:
        deeper.append(_level(a, i + 1))
    body = _numbered(*deeper, _Upsample(a.upsample[i]))
    merged = skip + (down if deepest else a.channels_up[i + 1])
    first = _SideBySide(_numbered(*_block(a, enter, skip, 1)), body) if skip else body
    steps = [first, nn.BatchNorm2d(merged), *_block(a, merged, up, a.kernel_up[i])]
    if a.one_by_one_up:
        steps += _block(a, up, up, 1)
    return _numbered(*steps)
