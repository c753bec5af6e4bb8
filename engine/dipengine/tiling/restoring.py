"""The fit of one tile."""

from __future__ import annotations

from dipengine.fitting.progress import ProgressCallback
from dipengine.restoration import restore_image
from dipengine.tiling.plan import TiledPlan


def restore_tile(tiled: TiledPlan, index: int, *, progress: ProgressCallback | None = None) -> None:
    """Fit one tile and keep its result. Raises what `restore_image` raises, and OutputError where the disk is full."""
    image, options, settings, plan = tiled.tile_plan(index)
    restored = restore_image(image, tiled.task, options, settings, progress=progress, plan=plan)
    tiled.add(index, restored.generator.delivered, restored.record)
