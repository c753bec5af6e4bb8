"""The hourglass of the deep image prior as plain data: its levels, its parameters, its canvas. Needs no torch.

Source: Ulyanov, Vedaldi, Lempitsky, "Deep Image Prior", CVPR 2018 (supplement, figure 21).

Level 0 is the outermost. A level with input x computes

    s = act(norm(conv1x1(x)))                                            "skip", absent where channels_skip is 0
    d = act(norm(halve(conv(x))))                                        "down1": stride 2, or stride 1 and a 2x2 mean
    d = act(norm(conv(d)))                                               "down2"
    d = upsample_x2(level i + 1 applied to d; d itself at the deepest level)
    m = norm(concat[s, d])                                               "merge"
    y = act(norm(conv(m)))                                               "up"
    y = act(norm(conv1x1(y)))                                            "point", absent without one_by_one_up

and the head is a 1x1 convolution of level 0's y. `norm` is BatchNorm on the statistics of its own input, biased
variance, epsilon 1e-5; `act` is LeakyReLU; kernels above 1 pad (k - 1) / 2 pixels by reflection or with zeros.

Parameter names, in the order of `Hourglass.parameters()`: level by level from 0, within a level skip, down1, down2,
merge, up, point, and last the head:

    level0.skip.conv.weight   level0.skip.conv.bias   level0.skip.norm.gamma   level0.skip.norm.beta
    level0.down1. ...         level0.down2. ...       (conv and norm, as above)
    level0.merge.norm.gamma   level0.merge.norm.beta
    level0.up. ...            level0.point. ...       (conv and norm, as above)
    level1. ...
    head.conv.weight          head.conv.bias

A parameter is *dead* when the function computed does not depend on it: every convolution bias in front of a norm,
and the merge beta where the "up" convolution sees no zero padding (a constant in is then a constant out, which the
norm behind it takes away). Dead parameters keep their place for parity of weights and are never trained.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from dipengine.errors import InputError

NORM_EPSILON = 1e-5
MAX_LEVELS = 12
KERNELS = (1, 3, 5, 7)
UPSAMPLE_MODES = ("nearest", "bilinear")
DOWNSAMPLE_MODES = ("stride", "average")
PADDINGS = ("reflection", "zero")

_PER_LEVEL = ("channels_down", "channels_up", "channels_skip", "kernel_down", "kernel_up", "upsample")


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter tensor: its name, shape, how it starts and whether it is dead.

    shape: (out, in, k, k) for a convolution's weight, (channels,) for the others.
    initial: "uniform" in [-bound, bound], "ones" or "zeros"; bound is 0 for the last two.
    """

    name: str
    shape: tuple[int, ...]
    initial: str
    bound: float
    dead: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Hourglass:
    """The architecture of one generator; every per-level tuple is ordered outermost level first.

    channels_skip: 0 leaves the level's skip branch out. kernel_*: odd side of the square kernel, 1 to 7.
    upsample: "nearest" or "bilinear" (half-pixel centres) per level. downsample: "stride" (convolution of stride 2) or
    "average" (convolution of stride 1, then a 2x2 mean). Defaults: the paper's denoising network.
    Raises InputError for anything that is not a network.
    """

    input_depth: int = 32
    output_channels: int = 3
    channels_down: tuple[int, ...] = (128,) * 5
    channels_up: tuple[int, ...] = (128,) * 5
    channels_skip: tuple[int, ...] = (4,) * 5
    kernel_down: tuple[int, ...] = (3,) * 5
    kernel_up: tuple[int, ...] = (3,) * 5
    upsample: tuple[str, ...] = ("bilinear",) * 5
    downsample: str = "stride"
    one_by_one_up: bool = True
    padding: str = "reflection"
    negative_slope: float = 0.2

    def __post_init__(self) -> None:
        for name in _PER_LEVEL:
            object.__setattr__(self, name, _as_tuple(name, getattr(self, name)))
        if not 1 <= self.levels <= MAX_LEVELS:
            raise InputError(f"The generator has {self.levels} levels; give it 1 to {MAX_LEVELS}.")
        for name in _PER_LEVEL:
            if len(getattr(self, name)) != self.levels:
                raise InputError(
                    f"{name} has {len(getattr(self, name))} values but channels_down has {self.levels}; "
                    "give every list one value per level."
                )
        for name in ("input_depth", "output_channels"):
            object.__setattr__(self, name, _whole(name, getattr(self, name), 1))
        for name, least in (("channels_down", 1), ("channels_up", 1), ("channels_skip", 0)):
            object.__setattr__(self, name, tuple(_whole(name, value, least) for value in getattr(self, name)))
        for name in ("kernel_down", "kernel_up"):
            for value in getattr(self, name):
                _one_of(name, value, KERNELS)
            object.__setattr__(self, name, tuple(int(value) for value in getattr(self, name)))
        for mode in self.upsample:
            _one_of("upsample", mode, UPSAMPLE_MODES)
        _one_of("downsample", self.downsample, DOWNSAMPLE_MODES)
        _one_of("padding", self.padding, PADDINGS)
        _one_of("one_by_one_up", self.one_by_one_up, (True, False))
        object.__setattr__(self, "one_by_one_up", bool(self.one_by_one_up))
        slope = self.negative_slope
        if isinstance(slope, bool) or not isinstance(slope, numbers.Real) or not 0 <= slope < 1:
            raise InputError(f"negative_slope is {slope!r}; give a number of at least 0 and below 1.")
        object.__setattr__(self, "negative_slope", float(slope))

    @classmethod
    def regular(cls, levels: int = 5, **settings: Any) -> Hourglass:
        """A generator of `levels` levels in which a per-level setting given as one value holds at every level.

        `channels` sets channels_down and channels_up together; all other names are those of the fields.
        """
        levels = _whole("levels", levels, 1)
        if "channels" in settings:
            channels = settings.pop("channels")
            settings = {"channels_down": channels, "channels_up": channels, **settings}
        defaults = {field.name: field.default for field in fields(cls)}
        for name in _PER_LEVEL:
            value = settings.get(name, defaults[name][0])
            settings[name] = value if isinstance(value, (tuple, list)) else (value,) * levels
        return cls(**settings)

    @property
    def levels(self) -> int:
        return len(self.channels_down)

    @property
    def parameter_count(self) -> int:
        """Number of scalars in all parameters, dead ones included."""
        return sum(spec.size for spec in self.parameters())

    def level_input(self, level: int) -> int:
        """Channels that enter a level from outside."""
        return self.input_depth if level == 0 else self.channels_down[level - 1]

    def inner_channels(self, level: int) -> int:
        """Channels that a level upsamples: those of the next level's output, or of its own at the deepest."""
        return self.channels_up[level + 1] if level + 1 < self.levels else self.channels_down[level]

    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Every parameter in the fixed order described at the top of this file.

        The position in this tuple is the `step` of the parameter's Philox stream, and the order in which optimisers
        and files see them.
        """
        return tuple(self._specs())

    def _specs(self) -> Iterator[ParameterSpec]:
        for i in range(self.levels):
            prefix, enter, down = f"level{i}", self.level_input(i), self.channels_down[i]
            skip, up = self.channels_skip[i], self.channels_up[i]
            merged = skip + self.inner_channels(i)
            if skip:
                yield from _unit(f"{prefix}.skip", skip, enter, 1)
            yield from _unit(f"{prefix}.down1", down, enter, self.kernel_down[i])
            yield from _unit(f"{prefix}.down2", down, down, self.kernel_down[i])
            sees_zeros = self.padding == "zero" and self.kernel_up[i] > 1
            yield from _norm(f"{prefix}.merge", merged, dead_beta=not sees_zeros)
            yield from _unit(f"{prefix}.up", up, merged, self.kernel_up[i])
            if self.one_by_one_up:
                yield from _unit(f"{prefix}.point", up, up, 1)
        yield from _conv("head", self.output_channels, self.channels_up[0], 1, dead_bias=False)

    @property
    def smallest_canvas(self) -> int:
        """Shortest side of a canvas, pixels: it leaves the deepest tensor one pixel more than a kernel there pads.

        2 * 2^levels with kernels of 3, 3 * 2^levels with a kernel_down of 5. Never less than two pixels remain at the
        deepest level, so that its BatchNorm always has a variance.
        """
        return max(2, 1 + (max(self.kernel_down) - 1) // 2) * 2**self.levels

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels of the grid on which an image of height x width pixels is fitted.

        Each side is the next multiple of 2^levels and at least `smallest_canvas`. The image lies at the canvas's top
        left corner; the rest is masked in the loss and cropped from the output.
        """
        height, width = _whole("height", height, 1), _whole("width", width, 1)
        step, least = 2**self.levels, self.smallest_canvas
        return max(least, -(-height // step) * step), max(least, -(-width // step) * step)

    def to_dict(self) -> dict[str, Any]:
        """The architecture as values that JSON holds; `from_dict` is the way back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"kind": "hourglass"} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Hourglass:
        """The architecture that `to_dict` described. Raises InputError for another kind or an unknown setting."""
        settings = dict(values)
        kind = settings.pop("kind", "hourglass")
        if kind != "hourglass":
            raise InputError(f"The generator is a {kind!r}; this version knows 'hourglass'.")
        unknown = sorted(set(settings) - {field.name for field in fields(cls)})
        if unknown:
            raise InputError(f"The architecture has the unknown setting {unknown[0]!r}; a newer version may read it.")
        return cls(**settings)


def _unit(prefix: str, out: int, enter: int, kernel: int) -> Iterator[ParameterSpec]:
    yield from _conv(prefix, out, enter, kernel, dead_bias=True)
    yield from _norm(prefix, out, dead_beta=False)


def _conv(prefix: str, out: int, enter: int, kernel: int, *, dead_bias: bool) -> Iterator[ParameterSpec]:
    # PyTorch's default for Conv2d, Kaiming uniform with a = sqrt(5), comes down to 1 / sqrt(fan_in) for both tensors.
    bound = 1 / math.sqrt(enter * kernel * kernel)
    yield ParameterSpec(f"{prefix}.conv.weight", (out, enter, kernel, kernel), "uniform", bound, False)
    yield ParameterSpec(f"{prefix}.conv.bias", (out,), "uniform", bound, dead_bias)


def _norm(prefix: str, channels: int, *, dead_beta: bool) -> Iterator[ParameterSpec]:
    yield ParameterSpec(f"{prefix}.norm.gamma", (channels,), "ones", 0.0, False)
    yield ParameterSpec(f"{prefix}.norm.beta", (channels,), "zeros", 0.0, dead_beta)


def _as_tuple(name: str, value: Any) -> tuple:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise InputError(f"{name} is {value!r}; give a list with one value per level.")
    return tuple(value)


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise InputError(f"{name} holds {value!r}; give whole numbers of at least {least}.")
    return int(value)


def _one_of(name: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise InputError(f"{name} holds {value!r}; choose from {', '.join(map(str, allowed))}.")
