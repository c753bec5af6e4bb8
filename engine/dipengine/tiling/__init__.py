"""Large images as independent fits of overlapping tiles, blended by a window."""

from dipengine.tiling.grid import Tile, TileGrid
from dipengine.tiling.plan import TiledPlan
from dipengine.tiling.planning import plan_tiles, remove
from dipengine.tiling.restoring import restore_tile
from dipengine.tiling.sizes import TileRequest

__all__ = ["Tile", "TileGrid", "TileRequest", "TiledPlan", "plan_tiles", "remove", "restore_tile"]
