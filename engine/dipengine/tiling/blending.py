"""From the tiles' fits to one image: weighted sums in data units, in float64, rounded once; some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dipengine.images.raw import row_bands
from dipengine.tiling.grid import Tile, TileGrid

# (tile, rows within it) -> [h, tile's width, C] in data units, float64
TilePixels = Callable[[Tile, slice], Any]


def blended(
    grid: TileGrid, height: int, width: int, channels: int, pixels: TilePixels, xp: Any = np
) -> Iterator[tuple[slice, Any]]:
    """Rows of the blended image from top to bottom: (rows, float64 [h, width, channels] in data units).

    height, width: of the output. xp: the array namespace (NumPy, CuPy) of what `pixels` gives and of what comes out.
    """
    weights = [tuple(xp.asarray(along) for along in grid.weights(index)) for index in range(len(grid))]
    for rows in row_bands(height, width * channels * 8):
        total = xp.zeros((rows.stop - rows.start, width, channels), dtype=xp.float64)
        for tile, (vertical, horizontal) in zip(grid, weights):
            there = tile.output_rows
            first, last = max(rows.start, there.start), min(rows.stop, there.stop)
            if first >= last:
                continue
            inside = slice(first - there.start, last - there.start)
            weight = vertical[inside, None, None] * horizontal[None, :, None]
            total[first - rows.start : last - rows.start, tile.output_columns, :] += weight * pixels(tile, inside)
        yield rows, total
