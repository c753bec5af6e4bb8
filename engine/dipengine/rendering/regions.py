"""Which part of z a region of the image depends on: the generator's receptive field, walked through its levels."""

from __future__ import annotations

from dipengine.generators.architecture import Hourglass


def needed(architecture: Hourglass, first: int, last: int) -> tuple[int, int]:
    """First and last position of z, along one axis and without regard to borders, that output pixels first..last depend on."""
    return _level(architecture, 0, first, last)


def window(architecture: Hourglass, first: int, last: int, length: int) -> tuple[int, int]:
    """The part [start, end) of a canvas's axis of `length` pixels on which output pixels first..last come out as on the whole.

    It starts and ends on multiples of 2^levels, so that pixels keep their places on every level, and is no shorter than the
    smallest canvas.
    """
    step = 2**architecture.levels
    low, high = needed(architecture, first, last)
    start, end = max(0, low) // step * step, min(length, -(-(high + 1) // step) * step)
    if end - start < architecture.smallest_canvas:
        end = min(length, start + architecture.smallest_canvas)
        start = max(0, end - architecture.smallest_canvas)
    return start, end


def halo(architecture: Hourglass) -> int:
    """The farthest that a pixel depends on z, pixels, whatever its place."""
    reach = 0
    for place in range(2**architecture.levels):
        low, high = needed(architecture, place, place)
        reach = max(reach, place - low, high - place)
    return reach


def _level(a: Hourglass, i: int, first: int, last: int) -> tuple[int, int]:
    """Of the level's input, given positions of its output."""
    around = a.kernel_up[i] // 2
    first, last = first - around, last + around
    beside = 1 if a.upsample[i] == "bilinear" else 0
    low, high = (first - beside) // 2, (last + beside) // 2
    if i + 1 < a.levels:
        low, high = _level(a, i + 1, low, high)
    around = a.kernel_down[i] // 2
    low, high = low - around, high + around
    more = 1 if a.downsample == "average" else 0
    low, high = 2 * low - around, 2 * high + more + around
    return (min(first, low), max(last, high)) if a.channels_skip[i] else (low, high)
