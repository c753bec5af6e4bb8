"""The layers of an hourglass and the floating-point operations of their products, counted from its description alone.

A layer is a convolution with the norm and the leaky ReLU of one convolution. Counted are the products of the convolution:
two operations (a product, a sum) for each tap, pair of channels and output pixel, forward once and backward twice (to the
data and to the weights), once where nothing wants the gradient to the data.
"""

from __future__ import annotations

from dataclasses import dataclass

from dipengine.generators.architecture import Hourglass


# Of the products of a plain convolution, in all three directions, by kernel and upsampling or stride: 25 a 2x2 tile of nearest
# samples (4x4 outputs), 9 a bilinear sample (2x2 outputs), 36 a 4x4 tile of outputs of stride 1, 25 a 2x2 tile of stride 2.
FEWEST = {(3, "nearest"): 25 / 144, (3, "bilinear"): 9 / 36, (3, 1): 36 / 144, (3, 2): 25 / 36}


@dataclass(frozen=True)
class Part:
    """What a layer reads: channels at height x width pixels; `raw` where it is a convolution's output and takes a gradient."""

    height: int
    width: int
    channels: int
    upsample: str = "none"
    raw: bool = True


@dataclass(frozen=True)
class Layer:
    """One convolution; height x width pixels and `channels` are those of its output."""

    name: str
    parts: tuple[Part, ...]
    channels: int
    height: int
    width: int
    kernel: int
    stride: int = 1
    norm: bool = True  # the head has none

    @property
    def shape(self) -> str:
        enter = "+".join(str(part.channels) for part in self.parts)
        size = f"{self.height}^2" if self.height == self.width else f"{self.height}x{self.width}"
        return f"{enter} -> {self.channels}, {self.kernel}x{self.kernel}, {size}"

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def operations(self, reduced: bool) -> tuple[float, float]:
        """(forward, backward) floating-point operations of the products.

        reduced: with the fewest products of the engine's forms, whichever of them the size and the instruction set allow; else
        every product of the plain convolution.
        """
        forward = backward = 0.0
        for part in self.parts:
            direct = 2.0 * self.kernel**2 * part.channels * self.channels * self.pixels
            form = part.upsample if part.upsample != "none" or len(self.parts) > 1 else self.stride
            direct *= FEWEST.get((self.kernel, form), 1.0) if reduced else 1.0
            forward += direct
            backward += (part.raw + 1) * direct
        return forward, backward


def layers_of(architecture: Hourglass, height: int, width: int) -> list[Layer]:
    """Every layer, outermost level first, on a canvas of height x width pixels. Names as in `Hourglass.parameters()`."""
    found = []
    for i in range(architecture.levels):
        full, half = (height >> i, width >> i), (height >> (i + 1), width >> (i + 1))
        down, up, skip = architecture.channels_down[i], architecture.channels_up[i], architecture.channels_skip[i]
        enter = Part(*full, architecture.level_input(i), raw=i > 0)
        kernel = architecture.kernel_down[i]
        merged = (Part(*half, architecture.inner_channels(i), architecture.upsample[i]),)
        if skip:
            merged = (Part(*full, skip), *merged)
            found.append(Layer(f"level{i}.skip", (enter,), skip, *full, 1))
        found += [
            Layer(f"level{i}.down1", (enter,), down, *half, kernel, 2),
            Layer(f"level{i}.down2", (Part(*half, down),), down, *half, kernel),
            Layer(f"level{i}.up", merged, up, *full, architecture.kernel_up[i]),
        ]
        if architecture.one_by_one_up:
            found.append(Layer(f"level{i}.point", (Part(*full, up),), up, *full, 1))
    top = architecture.channels_up[0]
    return [*found, Layer("head", (Part(height, width, top),), architecture.output_channels, height, width, 1, norm=False)]


def iteration_operations(layers: list[Layer], reduced: bool = False) -> float:
    """Floating-point operations of one iteration, forward and backward."""
    return sum(sum(layer.operations(reduced)) for layer in layers)
