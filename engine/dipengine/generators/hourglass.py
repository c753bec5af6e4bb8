"""The hourglass generator in plain PyTorch operations: the twin of the fused paths, and their fallback."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dipengine.errors import InputError
from dipengine.generators.architecture import NORM_EPSILON, Hourglass
from dipengine.generators.fused import FusedHourglass, evaluate, supports
from dipengine.generators.initial import initial_parameters
from dipengine.kernels import backend, conv


class HourglassNetwork(nn.Module):
    """f_theta(z) for an `Hourglass`, before the sigmoid. See `architecture` for the formula and the names.

    Parameters are NaN until filled by `load_numpy` (or use `from_seed`): nothing here draws from torch's generator.
    Dead parameters have requires_grad False, so their gradient is None; convolution biases in front of a norm are not
    even added. BatchNorm uses the statistics of its own input in train and in eval mode alike.

    float64 and float32 by `.to(dtype)`; bfloat16 through `torch.autocast`, where the head still runs in the
    parameters' dtype. Keeps channels_last tensors channels_last.
    """

    def __init__(self, architecture: Hourglass, *, kernels: str = "torch") -> None:
        """kernels: "torch", or "native" for the fused ops where they can do the architecture and z."""
        super().__init__()
        self.architecture = architecture
        self._fused = FusedHourglass(architecture) if kernels == "native" and supports(architecture) else None
        self.norm_listener: Callable[[nn.Module, Tensor], None] | None = None  # told each norm and its input, on the plain path
        for spec in architecture.parameters():
            *path, leaf = spec.name.split(".")
            owner: nn.Module = self
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            empty = torch.full(spec.shape, float("nan"), dtype=torch.float32)
            owner.register_parameter(leaf, nn.Parameter(empty, requires_grad=not spec.dead))

    @classmethod
    def from_seed(cls, architecture: Hourglass, seed: int, *, kernels: str = "auto") -> HourglassNetwork:
        """A float32 network with the initial parameters of `seed` (0 to 2^64 - 1)."""
        network = cls(architecture)
        network.load_numpy(initial_parameters(architecture, seed, kernels=kernels))
        return network

    def forward(self, z: Tensor) -> Tensor:
        """Raw logits [1, output_channels, H, W] from the code z [1, input_depth, H, W].

        H and W must be a canvas of the architecture. Raises InputError otherwise: batch statistics over several
        images, or a size that does not halve evenly, would silently be another network.
        """
        self._check_input(z)
        if self._fused is not None and backend.choose("auto", z, on_cuda=conv.runs_on_cuda(z.dtype)) == "native":
            return evaluate(self._fused, z, dict(self.named_parameters()))
        x = self._level(0, z)
        # bfloat16 logits have 8 bits: too coarse for the sigmoid's output, and the head costs next to nothing.
        with torch.autocast(z.device.type, enabled=False):
            head = self.head.conv
            return F.conv2d(x.to(head.weight.dtype), head.weight, head.bias)

    @property
    def fused(self) -> bool:
        """True where the network runs on the fused ops."""
        return self._fused is not None

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) of every parameter that is not dead, in the architecture's order."""
        named = dict(self.named_parameters())
        return [(spec.name, named[spec.name]) for spec in self.architecture.parameters() if not spec.dead]

    def load_numpy(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Fill every parameter from arrays of the architecture's names and shapes, cast to the network's dtype.

        Raises InputError, before anything is changed, if a name is missing, unknown, or has another shape.
        """
        specs = self.architecture.parameters()
        unknown = sorted(set(parameters) - {spec.name for spec in specs})
        if unknown:
            raise InputError(f"The weights hold {unknown[0]!r}, which this architecture has not; use the one they fit.")
        for spec in specs:
            if spec.name not in parameters:
                raise InputError(f"The weights lack {spec.name!r}; use the architecture that they were made for.")
            if tuple(parameters[spec.name].shape) != spec.shape:
                raise InputError(
                    f"{spec.name!r} has shape {tuple(parameters[spec.name].shape)} where the architecture has "
                    f"{spec.shape}; use the architecture that the weights were made for."
                )
        named = dict(self.named_parameters())
        with torch.no_grad():
            for spec in specs:
                # The copy also makes a read-only or strided array acceptable to torch.
                named[spec.name].copy_(torch.from_numpy(np.array(parameters[spec.name], order="C")))

    def numpy_parameters(self) -> dict[str, np.ndarray]:
        """A copy of every parameter, C order, in the network's dtype, under and in the order of the architecture."""
        named = dict(self.named_parameters())
        return {
            spec.name: np.array(named[spec.name].detach().cpu().numpy(), order="C")
            for spec in self.architecture.parameters()
        }

    def _level(self, i: int, x: Tensor) -> Tensor:
        arch, level = self.architecture, getattr(self, f"level{i}")
        deep = self._unit(level.down1, x, halve=arch.downsample)
        deep = self._unit(level.down2, deep)
        if i + 1 < arch.levels:
            deep = self._level(i + 1, deep)
        mode = arch.upsample[i]
        deep = F.interpolate(deep, scale_factor=2, mode=mode, align_corners=False if mode == "bilinear" else None)
        merged = torch.cat([self._unit(level.skip, x), deep], dim=1) if arch.channels_skip[i] else deep
        y = self._unit(level.up, self._norm(level.merge.norm, merged))
        return self._unit(level.point, y) if arch.one_by_one_up else y

    def _unit(self, unit: nn.Module, x: Tensor, halve: str = "") -> Tensor:
        """act(norm(halve(conv(pad(x))))), [1, C, H, W] -> [1, O, H, W], sides halved by "stride" or "average"."""
        weight = unit.conv.weight
        pad = weight.shape[-1] // 2
        if pad and self.architecture.padding == "reflection":
            x, pad = _reflect(x, pad), 0
        # The bias is left out: the norm behind takes any constant away.
        x = F.conv2d(x, weight, None, stride=2 if halve == "stride" else 1, padding=pad)
        if halve == "average":
            x = F.avg_pool2d(x, 2)
        # In place is safe: BatchNorm's backward keeps its input, not its output.
        return F.leaky_relu(self._norm(unit.norm, x), self.architecture.negative_slope, inplace=True)

    def _norm(self, norm: nn.Module, x: Tensor) -> Tensor:
        """BatchNorm of x [1, C, H, W] on its own mean and biased variance."""
        if self.norm_listener is not None:
            self.norm_listener(norm, x)
        return F.batch_norm(x, None, None, norm.gamma, norm.beta, training=True, eps=NORM_EPSILON)

    def _check_input(self, z: Tensor) -> None:
        arch = self.architecture
        if z.dim() != 4 or z.shape[0] != 1 or z.shape[1] != arch.input_depth:
            raise InputError(
                f"The code has shape {tuple(z.shape)}; give 1 x {arch.input_depth} x height x width, one image a time."
            )
        height, width = z.shape[2:]
        if (height, width) != arch.canvas(height, width):
            raise InputError(
                f"The code is {height} x {width} pixels, which is no canvas of this generator; "
                f"make it {' x '.join(map(str, arch.canvas(height, width)))}."
            )


def _reflect(x: Tensor, pad: int) -> Tensor:
    # Autocast would widen the whole tensor to float32 for a copy that is exact in any dtype.
    with torch.autocast(x.device.type, enabled=False):
        return F.pad(x, (pad, pad, pad, pad), mode="reflect")
