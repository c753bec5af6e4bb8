"""How large a tile may be and should be: from the plan's memory, known before anything is decoded, and from the task's operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dipengine.errors import InputError
from dipengine.fitting import native_fit
from dipengine.fitting.device import memory_of
from dipengine.fitting.settings import Settings
from dipengine.images import Image, ValueMap
from dipengine.restoration import Plan, plan_restoration
from dipengine.tasks import task_named
from dipengine.tasks.blur import Blur
from dipengine.tasks.downsampling import Downsampling
from dipengine.tiling.grid import TileGrid

LARGEST_SIDE = 512  # pixels of a restored tile: the recipes' lengths were found on images of about this size
OVERLAP_SHARE = 8  # the default overlap is this part of a tile's side
_PROBE = 16
_ANY_UNITS = ValueMap(0.0, 1e30)  # a range in which every sigma has a place


@dataclass(frozen=True)
class TileRequest:
    """What a caller may ask for: "auto" (tiles where the whole does not fit), "none", or a side, pixels of the input, and an
    overlap (None: an eighth of the side)."""

    mode: str = "auto"
    side: int | None = None
    overlap: int | None = None

    @classmethod
    def parse(cls, text: str) -> TileRequest:
        """`auto`, `none`, `SIDE` or `SIDE,OVERLAP`. Raises InputError."""
        if text in ("auto", "none"):
            return cls(text)
        try:
            numbers = [int(word) for word in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 2) or numbers[0] < 1 or min(numbers) < 0:
            raise InputError(f"The tile is {text!r}; give auto, none, a side such as 512, or side and overlap such as 512,64.")
        return cls("given", *numbers)


@dataclass(frozen=True)
class Fits:
    """The fits of one task and settings, of whatever size: what a plan for a small image says of all."""

    plan: Plan

    @classmethod
    def of(cls, like: Image, task: str, options: Mapping[str, Any], settings: Settings) -> Fits:
        """For images of that kind. options: the task's; of masks and guides it only counts that they are there (a guide as an
        Image, read or not). Raises InputError and DeviceError for what no image can be fitted with."""
        kernel = options.get("kernel")
        height, width = (_PROBE, _PROBE) if kernel is None else (max(_PROBE, length) for length in kernel.shape)
        small = dict(options)
        if any(option.kind == "mask" for option in task_named(task).options):
            small.update(mask=np.ones((height, width), bool), invert_mask=False)
        for name in ("random_missing", "data_term"):
            if name in options:
                small[name] = None
        names = {option.name for option in task_named(task).options}
        if "noise" in names and options.get("noise") in (None, "gaussian") and options.get("sigma") is None:
            small["sigma"] = 1.0  # it may be estimated, and a fit that knows its noise holds no less
        if options.get("guide") is not None:
            small["guide"] = Image(np.zeros((height, width, options["guide"].channels), np.uint8))
        image = Image(np.ones((height, width, like.channels), like.dtype), format=like.format)
        return cls(plan_restoration(image, task, small, settings, values=_ANY_UNITS))

    @property
    def scale(self) -> int:
        """Output pixels per input pixel, on each axis."""
        return self.plan.problem.scale

    @property
    def margins(self) -> tuple[int, int]:
        """Rows and columns that the painted image has more than the frame."""
        operator = self.plan.problem.operator
        return operator.margins if isinstance(operator, Blur) else (0, 0)

    @property
    def guards(self) -> tuple[int, int]:
        """Rows and columns at a tile's border whose data speak of pixels beyond it, too: they shall not count."""
        operator = self.plan.problem.operator
        if isinstance(operator, Blur):
            return tuple(length // 2 for length in operator.kernel.shape)
        if isinstance(operator, Downsampling):
            return (-(-operator.before // operator.factor),) * 2
        return 0, 0

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Of a fit of height x width input pixels: fits of one canvas can share a plan."""
        (rows, columns), scale = self.margins, self.scale
        return self.plan.recipe.generator.canvas(height * scale + rows, width * scale + columns)

    def bytes_for(self, height: int, width: int) -> int | None:
        """The arena of a fit of height x width input pixels; None where the native plan does not run it."""
        plan = self.plan
        problem, (rows, columns) = plan.problem, self.margins
        if not native_fit.supports(problem, plan.recipe, plan.placement):
            return None
        target = np.broadcast_to(np.float32(0), (height, width, problem.target.shape[2]))
        painted = (height * problem.scale + rows, width * problem.scale + columns)
        sized = replace(problem, target=target, output_shape=painted, known=None)
        return native_fit.planned_bytes(sized, plan.recipe, plan.placement, plan.stop)[0]

    def grid(self, height: int, width: int, request: TileRequest, budget: int | None = None) -> TileGrid | None:
        """The tiles of an image; None where it is one fit: by wish, or because its plan takes no more than `budget` bytes.

        budget: None for the memory that this process can have on its device, of which tiles take no more than half. Raises InputError for
        tiles that cannot be.
        """
        if request.mode == "none":
            return None
        budget = memory_of(self.plan.placement.device) if budget is None else budget
        sides = (request.side,) * 2
        if request.mode == "auto":
            whole = self.bytes_for(height, width)
            if whole is None or budget is None or whole <= budget:
                return None
            sides = self._largest_sides(budget // 2)
        overlap = min(sides) // OVERLAP_SHARE if request.overlap is None else request.overlap
        generator = self.plan.recipe.generator
        grid = TileGrid.of(
            height, width, sides, overlap, scale=self.scale, step=2**generator.levels, smallest=generator.smallest_canvas,
            margins=self.margins, guards=self.guards,
        )
        return grid if len(grid) > 1 else None

    def _largest_sides(self, budget: int) -> tuple[int, int]:
        """Of the largest tile, painted on at most the default side, whose plan takes no more than `budget` bytes."""
        generator, step = self.plan.recipe.generator, 2**self.plan.recipe.generator.levels
        reaches = (margin + 4 * guard for margin, guard in zip(self.margins, self.guards))
        largest = max(LARGEST_SIDE, generator.smallest_canvas + max(reaches))
        for painted in range(largest // step * step, generator.smallest_canvas - 1, -step):
            sides = tuple((painted - margin) // self.scale for margin in self.margins)
            if min(sides) > 0 and (self.bytes_for(*sides) or 0) <= budget:
                return sides
        raise InputError("Not even the smallest tile fits in memory; give fewer channels, the preset fast or another device.")
