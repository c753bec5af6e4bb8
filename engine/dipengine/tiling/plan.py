"""One large image as independent fits of tiles: what each is given, where its result is kept, and the blended image.

All of it lies in one folder, so that a run that was killed goes on where it was, and other processes can fit tiles:

| file | what |
|---|---|
| `plan.json` | everything decided before the first fit; written last, so that a folder that has it is whole |
| `image.raw`, `known.raw`, `guide.raw`, `kernel.npy` | the decoded input and what belongs to it |
| `tile_ROW_COLUMN.npy` | what a tile's fit delivered, float32 [h, w, C] in the generator's units, written beside and renamed |
| `tile_ROW_COLUMN.json` | its record, there before the pixels are |
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from dipengine.fitting.settings import Settings
from dipengine.images import MAX_PIXELS, Image, LargeImage, RawPixels, ValueMap, atomic_path, read_header, write_image_from
from dipengine.images.pages import file_and_page
from dipengine.images.resizing import enlarge_from
from dipengine.noise.anscombe import Anscombe
from dipengine.restoration import Plan, plan_restoration
from dipengine.tasks import task_named
from dipengine.tiling.blending import blended
from dipengine.tiling.grid import Axis, Tile, TileGrid

FORMAT = 2
KEPT, UNKNOWN = "kept", "unknown"  # why a tile needs no fit: all of it is delivered as it came; none of it is known


@dataclass(frozen=True)
class TiledPlan:
    """The plan of one image that is restored in tiles; made by `plan_tiles`, found again by `load`."""

    folder: Path
    key: str  # digest of the input and of all that decides the result
    task: str
    options: Mapping[str, Any]  # the task's; masks and guides are cut from files
    settings: Settings
    values: ValueMap  # the whole image's
    grid: TileGrid
    image: LargeImage
    known: RawPixels | None = None
    guide: LargeImage | None = None
    guide_values: ValueMap | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)  # fields that the whole image decides
    skipped: Mapping[int, str] = field(default_factory=dict)  # tiles without a fit: KEPT or UNKNOWN
    mean: tuple[float, ...] = ()  # of the known pixels, data units: what stands where nothing is known
    keep_known: bool = False
    fills_alpha: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)  # for the record: the whole image's

    @property
    def tiles(self) -> list[Tile]:
        """The tiles that are fitted, in their order."""
        return [tile for tile in self.grid if tile.index not in self.skipped]

    @property
    def pending(self) -> list[Tile]:
        """Those of them that have no result yet."""
        return [tile for tile in self.tiles if not self.done(tile.index)]

    @property
    def scale(self) -> int:
        """Output size over input size."""
        return self.grid.rows.scale

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the restored image."""
        height, width, channels = self.image.like.pixels.shape
        return height * self.scale, width * self.scale, channels

    @property
    def keeps_alpha(self) -> bool:
        """Whether the restored image has an alpha channel."""
        return self.image.like.alpha is not None and not self.fills_alpha

    def seed(self, index: int) -> int:
        """A tile's own seed: the first 64 bits of SHA-256 over "SEED tile INDEX"."""
        return int.from_bytes(sha256(f"{self.settings.seed} tile {index}".encode()).digest()[:8], "little")

    def tile_image(self, index: int) -> tuple[Image, dict[str, Any], Settings]:
        """What the fit of one tile is given: its part of the image, of masks and guides, and its own seed."""
        tile = self.grid[index]
        image = replace(self.image.window(tile.rows, tile.columns), alpha=None)
        options = dict(self.options)
        if self.known is not None:
            known = self.known.read(tile.rows, tile.columns)[:, :, 0].astype(bool)
            if any(option.kind == "mask" for option in task_named(self.task).options):
                image, options["mask"] = replace(image, known=None), known
            else:
                image = replace(image, known=None if known.all() else known)
        if self.guide is not None:
            options["guide"] = self.guide.window(tile.rows, tile.columns)
            options["guide_values"] = self.guide_values
        return image, options, replace(self.settings, seed=self.seed(index))

    def tile_plan(self, index: int) -> tuple[Image, dict[str, Any], Settings, Plan]:
        """`tile_image`, and the plan by which `restore_image` fits it: value map and recipe are the whole image's."""
        image, options, settings = self.tile_image(index)
        plan = plan_restoration(image, self.task, options, settings, values=self.values)
        return image, options, settings, replace(plan, recipe=replace(plan.recipe, **self.recipe))

    def done(self, index: int) -> bool:
        """Whether a tile's result is kept."""
        return self._result(index).exists()

    def add(self, index: int, unit: np.ndarray, record: Mapping[str, Any]) -> None:
        """Keep a tile's result: `unit`, float32 [h, w, C] as `FittedGenerator.delivered` has it, and its record.

        It is on the disk, whole, when this returns. Raises OutputError where it cannot be written.
        """
        tile = self.grid[index]
        wanted = (tile.height * self.scale, tile.width * self.scale, self.shape[2])
        if unit.shape != wanted:
            raise ValueError(f"tile {index} has {unit.shape} pixels, expected {wanted}")
        with atomic_path(self._record(index)) as beside:
            beside.write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
        with atomic_path(self._result(index)) as beside, open(beside, "wb") as file:
            np.save(file, np.ascontiguousarray(unit, np.float32))

    def records(self) -> dict[int, dict[str, Any]]:
        """The records of the tiles that are done, by index."""
        return {
            tile.index: json.loads(self._record(tile.index).read_text(encoding="utf-8"))
            for tile in self.tiles if self.done(tile.index)
        }

    def assemble(self) -> RawPixels:
        """Blend all tiles into `result.raw`, in the image's dtype and stored layout, alpha last where it is kept.

        Raises OSError where the disk is full.
        """
        height, width, channels = self.shape
        like = self.image.like
        result = RawPixels.create(
            self.folder / "result.raw", height, width, channels + self.keeps_alpha, like.dtype, self.image.stored.orientation
        )
        alpha = self._alpha() if self.keeps_alpha else None
        for rows, values in blended(self.grid, height, width, channels, self._data):
            pixels = ValueMap(0.0, 1.0).from_unit(values, like.dtype)
            if self.keep_known and self.known is not None:
                known = self.known.read(rows).astype(bool)
                pixels = np.where(known, self.image.window(rows).pixels, pixels)
            if alpha is not None:
                pixels = np.concatenate([pixels, alpha.read(rows)[:, :, -1:]], axis=2)
            result.write(rows, slice(None), pixels)
        return result

    def write(self, path: str | os.PathLike, result: RawPixels) -> None:
        """The restored image as a file, with the input's metadata; whole or not at all. Raises OutputError."""
        write_image_from(path, result, self._with_metadata(), alpha=self.keeps_alpha, scale=self.scale)

    def description(self) -> dict[str, Any]:
        """The tiles for the record: grid, and of each its window, seed, and why it has no fit where it has none."""
        tiles = [
            {**tile.to_dict(), "skipped": self.skipped[tile.index]} if tile.index in self.skipped
            else {**tile.to_dict(), "seed": self.seed(tile.index)}
            for tile in self.grid
        ]
        return {**self.grid.to_dict(), "seeds": "SHA-256 of 'SEED tile INDEX', first 8 bytes, little-endian", "each": tiles}

    def save(self) -> None:
        """Write `plan.json` (and the kernel), after everything else in the folder is on the disk."""
        options = dict(self.options)
        if options.get("kernel") is not None:
            with atomic_path(self.folder / "kernel.npy") as beside, open(beside, "wb") as file:
                np.save(file, options.pop("kernel"))
        guide = () if self.guide is None else (self.guide.stored, self.guide.known)
        for raw in (self.image.stored, self.image.known, self.known, *guide):
            if raw is not None:
                raw.flush()
        about = {
            "format": FORMAT, "key": self.key, "task": self.task, "options": options, "settings": asdict(self.settings),
            "values": self.values.to_dict(), "rows": asdict(self.grid.rows), "columns": asdict(self.grid.columns),
            "image": self.image.to_dict(), "known": None if self.known is None else self.known.path.name,
            "guide": None if self.guide is None else self.guide.to_dict(),
            "guide_values": None if self.guide_values is None else self.guide_values.to_dict(),
            "recipe": self.recipe, "skipped": {str(index): why for index, why in self.skipped.items()}, "mean": self.mean,
            "keep_known": self.keep_known, "fills_alpha": self.fills_alpha, "parameters": self.parameters,
        }
        with atomic_path(self.folder / "plan.json") as beside:
            beside.write_text(json.dumps(about, allow_nan=False, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TiledPlan:
        """The plan that `save` wrote, in this or another process. Raises FileNotFoundError and ValueError."""
        about = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        if about.pop("format") != FORMAT:
            raise ValueError("another version's plan")
        image = LargeImage.from_dict(about["image"], folder)
        about["options"].update({"kernel": np.load(folder / "kernel.npy")} if (folder / "kernel.npy").exists() else {})
        settings = {name: tuple(value) if isinstance(value, list) else value for name, value in about["settings"].items()}
        known, guide, curve = about["known"], about["guide"], about["values"].get("curve")
        about.update(
            folder=folder,
            settings=Settings(**settings),
            values=ValueMap.from_dict(about["values"], Anscombe.from_dict(curve) if curve else None),
            grid=TileGrid(Axis(**about.pop("rows")), Axis(**about.pop("columns"))),
            image=image,
            known=None if known is None else RawPixels(folder / known, (*image.like.pixels.shape[:2], 1), np.dtype(np.uint8)),
            guide=None if guide is None else LargeImage.from_dict(guide, folder),
            guide_values=None if guide is None else ValueMap.from_dict(about["guide_values"]),
            skipped={int(index): why for index, why in about["skipped"].items()},
            mean=tuple(about["mean"]),
        )
        return cls(**about)

    def _result(self, index: int) -> Path:
        tile = self.grid[index]
        return self.folder / f"tile_{tile.row}_{tile.column}.npy"

    def _record(self, index: int) -> Path:
        return self._result(index).with_suffix(".json")

    def _data(self, tile: Tile, rows: slice) -> np.ndarray:
        """A tile's restored rows in data units, float64."""
        if tile.index in self.skipped:
            return np.broadcast_to(np.array(self.mean), (rows.stop - rows.start, tile.width * self.scale, len(self.mean)))
        return self.values.from_unit(np.array(np.load(self._result(tile.index), mmap_mode="r")[rows]), np.float64)

    def _alpha(self) -> RawPixels:
        """Transparency of the output's size, last of its bands."""
        return self.image.stored if self.scale == 1 else enlarge_from(self.image.stored, self.scale, self.folder / "alpha.raw")

    def _with_metadata(self) -> Image:
        like = self.image.like
        if like.metadata.fields or like.metadata.fits or not os.path.exists(file_and_page(like.source)[0]):
            return like
        return replace(like, metadata=read_header(like.source, max_pixels=max(MAX_PIXELS, like.pixels.size)).metadata)

    @cached_property
    def restored_like(self) -> Image:
        """The restored image's size and kind, its values zeros that take no memory."""
        zero = np.zeros((), self.image.like.dtype)
        alpha = np.broadcast_to(zero, self.shape[:2]) if self.keeps_alpha else None
        return replace(self.image.like, pixels=np.broadcast_to(zero, self.shape), alpha=alpha, known=None)
