"""The paper's network and its fit in plain PyTorch: what the engine is measured against.

Written as a careful user of PyTorch would write it: modules, autograd, nothing computed twice and no measuring inside the
loop. Reflection, too, stays in bf16: autocast would widen the image to float32 for a copy. One iteration is z plus new
normal noise, network, sigmoid, mean squared error, backward, Adam (fused), and the average of the outputs. On a GPU it can be
captured as a CUDA graph and replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dipengine.bench.setting import AVERAGE_DECAY, LEARNING_RATE, PERTURBATION, Setting
from dipengine.generators.architecture import Hourglass

CHANNELS_LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format


@dataclass(frozen=True)
class Configuration:
    """How the same network is run."""

    precision: str  # "fp32", or "bf16": autocast around the forward pass
    memory: torch.memory_format  # of the weights and images
    compiled: bool = False  # by torch.compile: network and loss
    mode: str | None = None  # of torch.compile
    graph: bool = False  # a whole iteration as one CUDA graph


EAGER = "eager float32"
CONFIGURATIONS = {
    EAGER: Configuration("fp32", CONTIGUOUS),
    "float32 channels_last": Configuration("fp32", CHANNELS_LAST),
    "bf16 channels_last": Configuration("bf16", CHANNELS_LAST),
    "bf16 channels_last, compiled": Configuration("bf16", CHANNELS_LAST, compiled=True),
}


# On a GPU. Products of "fp32" are tf32 where torch.backends says so.
CUDA_CONFIGURATIONS = {
    "eager tf32": Configuration("fp32", CONTIGUOUS),
    "bf16 channels_last, graph": Configuration("bf16", CHANNELS_LAST, graph=True),
    "bf16 channels_last, max-autotune, graph": Configuration("bf16", CHANNELS_LAST, True, "max-autotune-no-cudagraphs", True),
}


class PlainHourglass(nn.Module):
    """Raw logits [1, out, H, W] from z [1, depth, H, W]. Parameters lie in the order of the authors' `skip` network.

    groups: so many networks side by side, by grouped convolutions: each one's channels lie together, in z and in the logits.
    """

    def __init__(self, architecture: Hourglass, groups: int = 1) -> None:
        super().__init__()
        self.level = _Level(architecture, 0, groups)
        self.head = _convolution(architecture.channels_up[0], architecture.output_channels, 1, groups=groups)

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.level(z))


class _Level(nn.Module):
    def __init__(self, a: Hourglass, i: int, groups: int) -> None:
        super().__init__()
        enter, down, up, skip = a.level_input(i), a.channels_down[i], a.channels_up[i], a.channels_skip[i]
        slope, kernel = a.negative_slope, a.kernel_down[i]
        self.groups = groups
        self.skip = _unit(enter, skip, 1, slope, groups) if skip else None
        self.down = nn.Sequential(_unit(enter, down, kernel, slope, groups, stride=2), _unit(down, down, kernel, slope, groups))
        self.deeper = _Level(a, i + 1, groups) if i + 1 < a.levels else nn.Identity()
        self.upsample = nn.Upsample(scale_factor=2, mode=a.upsample[i])
        merged = skip + a.inner_channels(i)
        self.merge = nn.BatchNorm2d(groups * merged)
        self.up = nn.Sequential(_unit(merged, up, a.kernel_up[i], slope, groups), _unit(up, up, 1, slope, groups))

    def forward(self, x: Tensor) -> Tensor:
        deep = self.upsample(self.deeper(self.down(x)))
        merged = deep if self.skip is None else self._beside(self.skip(x), deep)
        return self.up(self.merge(merged))

    def _beside(self, skip: Tensor, deep: Tensor) -> Tensor:
        if self.groups == 1:
            return torch.cat([skip, deep], dim=1)
        if skip.is_contiguous(memory_format=torch.channels_last):  # and stays so
            rows = [image.permute(0, 2, 3, 1).unflatten(3, (self.groups, -1)) for image in (skip, deep)]
            return torch.cat(rows, dim=4).flatten(3, 4).permute(0, 3, 1, 2)
        return torch.cat([image.unflatten(1, (self.groups, -1)) for image in (skip, deep)], dim=2).flatten(1, 2)


class _ReflectionPad(nn.Module):
    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.pad(x, (self.pixels,) * 4, mode="reflect")


def _unit(enter: int, out: int, kernel: int, slope: float, groups: int, stride: int = 1) -> nn.Sequential:
    pad = [_ReflectionPad(kernel // 2)] if kernel > 1 else []
    return nn.Sequential(*pad, _convolution(enter, out, kernel, stride, groups), nn.BatchNorm2d(groups * out),
                         nn.LeakyReLU(slope, inplace=True))


def _convolution(enter: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(groups * enter, groups * out, kernel, stride, groups=groups)


class PyTorchFit:
    """The fit of one image by one configuration; groups: of so many, which are equal, by grouped convolutions."""

    def __init__(self, configuration: Configuration, setting: Setting, groups: int = 1) -> None:
        torch.manual_seed(0)
        architecture, memory = setting.architecture, configuration.memory
        self.device, self.groups = torch.device(setting.device), groups
        shape = (1, groups * architecture.input_depth, setting.height, setting.width)
        self.z = (0.1 * torch.rand(shape, device=self.device)).contiguous(memory_format=memory)
        # One row of numbers: into a channels_last tensor PyTorch draws them one by one, eight times slower.
        self.noise = torch.empty(self.z.numel(), device=self.device)
        self.noise_image = self.noise.as_strided(self.z.shape, self.z.stride())
        target = torch.from_numpy(setting.target()).permute(2, 0, 1)[None].to(self.device)
        self.target = target.repeat(1, groups, 1, 1).contiguous(memory_format=memory)
        self.average = torch.zeros_like(self.target)
        with self.device:
            self.network = PlainHourglass(architecture, groups).to(memory_format=memory)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE, fused=True, capturable=configuration.graph)
        self.bf16 = configuration.precision == "bf16"
        self.evaluate: Callable = torch.compile(self._evaluate, mode=configuration.mode) if configuration.compiled else self._evaluate
        self._graph = self._captured() if configuration.graph else None

    def run(self, n: int) -> None:
        """Returns when the device has done them."""
        for _ in range(n):
            self.begin()
        self.loss.item()

    def step(self) -> float:
        """One iteration; the loss at the weights before the update."""
        self.begin()
        return self.loss.item()

    def begin(self) -> None:
        """Give the device one iteration to do."""
        if self._graph is None:
            self._iterate()
        else:
            self._graph.replay()

    def _iterate(self) -> None:
        self.optimizer.zero_grad()
        self.noise.normal_()
        self.loss, out = self.evaluate(torch.add(self.z, self.noise_image, alpha=PERTURBATION))
        self.loss.backward()
        self.optimizer.step()
        self.average.lerp_(out, 1 - AVERAGE_DECAY)

    def _captured(self) -> torch.cuda.CUDAGraph:
        """An iteration, behind some on another stream, as PyTorch wants it."""
        before, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(before)
        with torch.cuda.stream(beside):
            for _ in range(3):
                self._iterate()
        before.wait_stream(beside)
        self.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._iterate()
        return graph

    def _evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.network(z)
        out = torch.sigmoid(logits.float())
        return self.groups * F.mse_loss(out, self.target), out.detach()  # the sum of the fits' own losses
