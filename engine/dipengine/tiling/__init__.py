"""Large images as independent fits of overlapping tiles, blended by a window."""

from dipengine.tiling.grid import Tile, TileGrid

__all__ = ["Tile", "TileGrid"]
