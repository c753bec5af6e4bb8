"""Large images as independent fits of overlapping tiles, blended by a window."""

from dipengine.tiling.command import TilesInterrupted, restore_file, tiles_folder
from dipengine.tiling.grid import Tile, TileGrid
from dipengine.tiling.plan import TiledPlan
from dipengine.tiling.planning import needs_tiles, plan_tiles, refuse_in_tiles, remove
from dipengine.tiling.record import tiled_record
from dipengine.tiling.restoring import restore_tile
from dipengine.tiling.sizes import TileRequest

__all__ = [
    "Tile", "TileGrid", "TileRequest", "TiledPlan", "TilesInterrupted", "needs_tiles", "plan_tiles", "refuse_in_tiles",
    "remove", "restore_file",
    "restore_tile", "tiled_record", "tiles_folder",
]
