"""The paper's network and its fit in plain PyTorch: what the engine is measured against.

Written as a careful user of PyTorch would write it: modules, autograd, nothing computed twice and no measuring inside the
loop. Reflection, too, stays in bf16: autocast would widen the image to float32 for a copy. One iteration is z plus new
normal noise, network, sigmoid, mean squared error, backward, Adam (fused), and the average of the outputs.
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


EAGER = "eager float32"
CONFIGURATIONS = {
    EAGER: Configuration("fp32", CONTIGUOUS),
    "float32 channels_last": Configuration("fp32", CHANNELS_LAST),
    "bf16 channels_last": Configuration("bf16", CHANNELS_LAST),
    "bf16 channels_last, compiled": Configuration("bf16", CHANNELS_LAST, compiled=True),
}


class PlainHourglass(nn.Module):
    """Raw logits [1, out, H, W] from z [1, depth, H, W]. Parameters lie in the order of the authors' `skip` network."""

    def __init__(self, architecture: Hourglass) -> None:
        super().__init__()
        self.level = _Level(architecture, 0)
        self.head = nn.Conv2d(architecture.channels_up[0], architecture.output_channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.level(z))


class _Level(nn.Module):
    def __init__(self, a: Hourglass, i: int) -> None:
        super().__init__()
        enter, down, up, skip = a.level_input(i), a.channels_down[i], a.channels_up[i], a.channels_skip[i]
        slope, kernel = a.negative_slope, a.kernel_down[i]
        self.skip = _unit(enter, skip, 1, slope) if skip else None
        self.down = nn.Sequential(_unit(enter, down, kernel, slope, stride=2), _unit(down, down, kernel, slope))
        self.deeper = _Level(a, i + 1) if i + 1 < a.levels else nn.Identity()
        self.upsample = nn.Upsample(scale_factor=2, mode=a.upsample[i])
        merged = skip + a.inner_channels(i)
        self.merge = nn.BatchNorm2d(merged)
        self.up = nn.Sequential(_unit(merged, up, a.kernel_up[i], slope), _unit(up, up, 1, slope))

    def forward(self, x: Tensor) -> Tensor:
        deep = self.upsample(self.deeper(self.down(x)))
        merged = deep if self.skip is None else torch.cat([self.skip(x), deep], dim=1)
        return self.up(self.merge(merged))


class _ReflectionPad(nn.Module):
    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.pad(x, (self.pixels,) * 4, mode="reflect")


def _unit(enter: int, out: int, kernel: int, slope: float, stride: int = 1) -> nn.Sequential:
    pad = [_ReflectionPad(kernel // 2)] if kernel > 1 else []
    return nn.Sequential(*pad, nn.Conv2d(enter, out, kernel, stride), nn.BatchNorm2d(out), nn.LeakyReLU(slope, inplace=True))


class PyTorchFit:
    """The fit of one image by one configuration."""

    def __init__(self, configuration: Configuration, setting: Setting) -> None:
        torch.manual_seed(0)
        architecture, memory = setting.architecture, configuration.memory
        shape = (1, architecture.input_depth, setting.height, setting.width)
        self.z = (0.1 * torch.rand(shape)).contiguous(memory_format=memory)
        # One row of numbers: into a channels_last tensor PyTorch draws them one by one, eight times slower.
        self.noise = torch.empty(self.z.numel())
        self.noise_image = self.noise.as_strided(self.z.shape, self.z.stride())
        self.target = torch.from_numpy(setting.target()).permute(2, 0, 1)[None].contiguous(memory_format=memory)
        self.average = torch.zeros_like(self.target)
        self.network = PlainHourglass(architecture).to(memory_format=memory)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE, fused=True)
        self.bf16 = configuration.precision == "bf16"
        self.evaluate: Callable = torch.compile(self._evaluate) if configuration.compiled else self._evaluate

    def run(self, n: int) -> None:
        for _ in range(n):
            self.step()

    def step(self) -> float:
        """One iteration; the loss at the weights before the update."""
        self.optimizer.zero_grad()
        self.noise.normal_()
        loss, out = self.evaluate(torch.add(self.z, self.noise_image, alpha=PERTURBATION))
        loss.backward()
        self.optimizer.step()
        self.average.lerp_(out, 1 - AVERAGE_DECAY)
        return loss.item()

    def _evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.network(z)
        out = torch.sigmoid(logits.float())
        return F.mse_loss(out, self.target), out.detach()
