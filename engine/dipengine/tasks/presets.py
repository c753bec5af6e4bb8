"""Presets: how a task's recipe becomes the one that is run.

| preset | network | output average | stop |
|---|---|---|---|
| `paper` | the recipe table as it stands | where the recipe has one | fixed |
| `balanced` | nearest upsampling | 0.99, warmed up | auto |
| `fast` | nearest upsampling, channels capped at 64 | 0.99, warmed up | auto |

A task may change its recipe for the presets that stop by themselves (`inpaint`: step size, pixels held out), and keep its upsampling
(`superres` by two).

Nearest upsampling reaches the quality of bilinear in fewer iterations; its convolutions cost the same or less
(csrc/ops/conv/conv.h).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dipengine.errors import InputError
from dipengine.tasks.base import Recipe

AVERAGE_DECAY = 0.99
FAST_CHANNELS = 64


@dataclass(frozen=True)
class Preset:
    nearest: bool
    channel_cap: int | None
    average_decay: float | None  # None: as the recipe says
    stop: str
    summary: str


PRESETS = {
    "paper": Preset(False, None, None, "fixed", "the published recipe as it stands, fixed number of iterations"),
    "balanced": Preset(True, None, AVERAGE_DECAY, "auto", "the same network with nearest upsampling, stopped by itself"),
    "fast": Preset(True, FAST_CHANNELS, AVERAGE_DECAY, "auto", "as balanced, channels capped at 64"),
}


def preset_named(name: str) -> Preset:
    """Look a preset up. Raises InputError for an unknown name."""
    if name not in PRESETS:
        raise InputError(f"There is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def apply_preset(recipe: Recipe, name: str) -> Recipe:
    """The recipe under a preset."""
    preset = preset_named(name)
    generator = recipe.generator
    if preset.nearest and not recipe.own_upsampling:
        generator = replace(generator, upsample=("nearest",) * generator.levels)
    if preset.channel_cap is not None:
        cap = preset.channel_cap
        generator = replace(
            generator,
            channels_down=tuple(min(c, cap) for c in generator.channels_down),
            channels_up=tuple(min(c, cap) for c in generator.channels_up),
            channels_skip=tuple(min(c, cap) for c in generator.channels_skip),
        )
    recipe = replace(recipe, generator=generator)
    if preset.average_decay is None:
        return recipe
    return replace(recipe, average_decay=preset.average_decay, average_warm_up=True)


def apply_overrides(
    recipe: Recipe,
    *,
    iterations: int | None = None,
    levels: int | None = None,
    channels: tuple[int, ...] | None = None,
    skips: tuple[int, ...] | None = None,
    upsample: tuple[str, ...] | None = None,
) -> Recipe:
    """The recipe with the caller's changes of length and network.

    `channels`, `skips` and `upsample` hold one value for all levels or one a level, outermost first. Fewer `levels`
    keep the outer ones, more repeat the innermost.
    """
    generator = recipe.generator
    if levels is not None:
        names = ("channels_down", "channels_up", "channels_skip", "kernel_down", "kernel_up", "upsample")
        generator = replace(generator, **{name: _resized(getattr(generator, name), levels) for name in names})
    count = generator.levels
    if channels is not None:
        widths = _per_level("channels", channels, count)
        generator = replace(generator, channels_down=widths, channels_up=widths)
    if skips is not None:
        generator = replace(generator, channels_skip=_per_level("skips", skips, count))
    if upsample is not None:
        generator = replace(generator, upsample=_per_level("upsample", upsample, count))
    return replace(recipe, generator=generator, iterations=recipe.iterations if iterations is None else iterations)


def _resized(values: tuple, levels: int) -> tuple:
    return values[:levels] + (values[-1],) * (levels - len(values))


def _per_level(name: str, values: tuple, levels: int) -> tuple:
    if len(values) == 1:
        return values * levels
    if len(values) != levels:
        raise InputError(f"{name} has {len(values)} values for {levels} levels; give one for all or one a level.")
    return tuple(values)
