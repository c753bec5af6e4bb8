"""Whether an image is restored in tiles, and the plan for it: sizes from its header, then one decoding and two passes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dipengine._version import __version__
from dipengine.errors import DipEngineError, InputError, OutputError
from dipengine.fitting.settings import Settings
from dipengine.images import MAX_PIXELS, Image, LargeImage, RawPixels, ValueMap, decode, read_header, read_large_mask
from dipengine.images.large import dump
from dipengine.images.pages import file_and_page
from dipengine.images.reading import digest_of
from dipengine.kernels import backend
from dipengine.tasks import Task, task_named
from dipengine.tasks.denoise import estimates_noise
from dipengine.tasks.noise_options import with_noise_of_whole
from dipengine.tiling import whole
from dipengine.tiling.grid import TileGrid
from dipengine.tiling.plan import KEPT, UNKNOWN, TiledPlan
from dipengine.tiling.sizes import Fits, TileRequest

Source = str | os.PathLike | Image
# Those of `TiledPlan`, what they were made from, and what a killed run left of them half-written.
_OURS = re.compile(
    r"\.?(image|known|guide|mask|truth|alpha|result|kernel|plan|files|tile_\d+_\d+)\.([0-9a-f]{12}\.)?(raw|known|white|fits|npy|json)"
)
_SPARE = 1.1  # of the disk's room: file systems keep some for themselves


def plan_tiles(
    source: Source,
    task: str,
    options: Mapping[str, Any],
    settings: Settings,
    *,
    folder: str | os.PathLike,
    tile: TileRequest = TileRequest(),
    budget: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> TiledPlan | None:
    """The plan of tiles for an image, its folder filled; None where the image is one fit (nothing is decoded or written then).

    source: a path, or an image in memory. options: the task's; a mask is a path or a bool array (True = known), a guide a path or
    an Image, a kernel an array. folder: made where it is not there; one that holds the same plan already (same input, same
    parameters) is taken as it is, with the tiles that are done in it, any other plan's files in it are removed.
    budget: bytes for one fit; None for all the memory that this process can have.

    Raises what reading the image raises, InputError for options and tiles that cannot be, DeviceError, and OutputError where the
    disk has no room.
    """
    like, guide_like, fits, grid = _decided(source, task, options, settings, tile, budget, max_pixels)
    if grid is None:
        return None
    if guide_like is not None and guide_like.pixels.shape[:2] != like.pixels.shape[:2]:
        raise InputError(
            f"The guide is {guide_like.width}x{guide_like.height} and the image {like.width}x{like.height} pixels; "
            f"they must be of one size."
        )
    folder = Path(folder)
    key = _key(source, task, options, settings, fits, grid)
    kept = _found(folder, key)
    if kept is not None:
        return kept
    _make_room(folder, like, guide_like, grid, options)
    try:
        return _planned(source, task_named(task), dict(options), settings, fits, grid, folder, key, max_pixels)
    except BaseException as error:
        clear(folder)
        if isinstance(error, OSError) and not isinstance(error, DipEngineError):
            raise OutputError(f"{folder} cannot be filled ({error.strerror or error}); free some space.") from error
        raise


def needs_tiles(
    source: Source, task: str, options: Mapping[str, Any], settings: Settings, *, tile: TileRequest = TileRequest(),
    budget: int | None = None, max_pixels: int = MAX_PIXELS,
) -> bool:
    """Whether `plan_tiles` would make tiles: from headers alone. False where anything is wrong, too: whoever then takes the image
    as one fit finds out what."""
    try:
        return _decided(source, task, options, settings, tile, budget, max_pixels)[3] is not None
    except DipEngineError:
        return False


_NOT_IN_TILES = {
    "generator": "has a generator for each of them",
    "generators": "has a generator for each of them",
    "export": "has a generator for each of them",
    "init-from": "begins each of them with random weights",
    "warm": "begins each of them with random weights",
    "checkpoint": "keeps what is done by itself, tile by tile",
}


def refuse_in_tiles(*asked: str) -> None:
    """Raises InputError for the first of the options asked for that an image in tiles cannot have."""
    for name in asked:
        raise InputError(f"An image in tiles {_NOT_IN_TILES[name]}; leave --{name} out, or give --tile none.")


def clear(folder: str | os.PathLike) -> None:
    """Remove a plan's files from its folder; anybody else's stay."""
    with suppress(OSError):
        for path in Path(folder).iterdir():
            if _OURS.fullmatch(path.name):
                path.unlink()


def remove(folder: str | os.PathLike) -> None:
    """Remove a plan's files, and its folder where nothing else is in it."""
    clear(folder)
    with suppress(OSError):
        os.rmdir(folder)


def _decided(
    source: Source, task: str, options: Mapping[str, Any], settings: Settings, tile: TileRequest, budget: int | None,
    max_pixels: int,
) -> tuple[Image, Image | None, Fits, TileGrid | None]:
    """The image and the guide without their values, the fits that they would have, and the tiles if there shall be some."""
    like = source if isinstance(source, Image) else read_header(source, max_pixels=max_pixels)
    guide = options.get("guide")
    if guide is not None and not isinstance(guide, Image):
        guide = read_header(guide, max_pixels=max_pixels)
    fits = Fits.of(like, task, {**options, **({} if guide is None else {"guide": guide})}, settings)
    return like, guide, fits, fits.grid(like.height, like.width, tile, budget)


def _planned(
    source: Source, task: Task, options: dict[str, Any], settings: Settings, fits: Fits, grid: TileGrid, folder: Path, key: str,
    max_pixels: int,
) -> TiledPlan:
    image = _in_files(source, folder, "image", max_pixels)
    if task.name == "dejpeg":
        image = whole.with_coding(image)
    mask = _mask(options.pop("mask", None), options.pop("invert_mask", False), image, folder, max_pixels)
    known, told = whole.known_pixels(task, image, mask, options, settings.seed, folder)
    random_missing = options.pop("random_missing", None)
    guide = options.pop("guide", None)
    guide_values = None
    if guide is not None:
        guide = _in_files(guide, folder, "guide", max_pixels)
        guide_values = ValueMap.for_image(whole.Survey.of(guide, guide.known).sample.pixels, data_units=guide.like.in_data_units)
    survey = whole.Survey.of(image, known)
    problem = fits.plan.problem
    skipped, parameters = {}, {}
    if known is not None:
        counts = whole.known_in_tiles(grid, known)
        skipped = _skipped(task, grid, counts, problem.keep_known)
    if task.name == "inpaint":
        there = sum(np.count_nonzero(known.read(rows)) for rows in known.bands_of_rows())
        missing = float(1 - there / (known.height * known.width))
        parameters = {"mask": told, "random_missing": random_missing, "missing_fraction": missing}
    values = whole.value_map(task, survey, settings.value_range, options)
    if any(option.name == "noise" for option in task.options):
        by_itself = task.name == "denoise" and estimates_noise(settings.preset)
        bands = whole.parts(image, known)
        options, estimated = with_noise_of_whole(image.like.pixels.shape[:2], bands, options, values.span, by_itself=by_itself)
        parameters.update(estimated)
    plan = TiledPlan(
        folder=folder, key=key, task=task.name, options=options, settings=settings,
        values=values, grid=grid, image=image, known=known, guide=guide,
        guide_values=guide_values, recipe=task.recipe_of_whole(whole.parts(image, known), options), skipped=skipped,
        mean=tuple(survey.mean.tolist()), keep_known=problem.keep_known, fills_alpha=told == "alpha", parameters=parameters,
    )
    plan.save()
    return plan


def _skipped(task: Task, grid: TileGrid, counts: list[int], keep_known: bool) -> dict[int, str]:
    """Tiles that need no fit. Raises InputError for an inpainting tile with nothing in it to go by."""
    skipped = {}
    for tile, count in zip(grid, counts):
        if count == 0:
            if task.name == "inpaint":
                raise InputError(
                    f"The hole at {tile.left},{tile.top} (x,y) swallows a whole tile of {tile.width}x{tile.height} pixels, of which "
                    f"nothing is known; give larger tiles with --tile SIDE, or one for all with --tile none."
                )
            skipped[tile.index] = UNKNOWN
        elif keep_known and count == tile.height * tile.width:
            skipped[tile.index] = KEPT
    return skipped


def _in_files(source: Source, folder: Path, name: str, max_pixels: int) -> LargeImage:
    return dump(source, folder, name) if isinstance(source, Image) else decode(source, folder, name, max_pixels=max_pixels)


def _mask(mask: Any, invert: bool, image: LargeImage, folder: Path, max_pixels: int) -> RawPixels | None:
    if mask is None:
        return None
    height, width = image.like.pixels.shape[:2]
    if not isinstance(mask, np.ndarray):
        return read_large_mask(mask, (height, width), folder, "mask", invert=invert, max_pixels=max_pixels)
    if mask.shape != (height, width):
        raise InputError(
            f"The mask is {mask.shape[1]}x{mask.shape[0]} and the image {width}x{height} pixels; they must be of one size."
        )
    raw = RawPixels.create(folder / "mask.white", height, width, 1, np.dtype(np.uint8))
    raw.write(slice(None), slice(None), (mask ^ invert)[:, :, None])
    return raw


def _key(source: Source, task: str, options: Mapping[str, Any], settings: Settings, fits: Fits, grid: TileGrid) -> str:
    """Digest of all that decides the result, the number of threads and the names of files apart."""
    placement = fits.plan.placement
    files = [option.keyword for option in task_named(task).options if option.kind in ("mask", "image", "kernel")]
    about = {
        "version": __version__, "task": task, "source": _digest(source),
        "options": {name: _digest(value) if name in files else value for name, value in sorted(options.items())},
        "settings": asdict(replace(settings, threads=None)), "rows": asdict(grid.rows), "columns": asdict(grid.columns),
        "device": placement.device, "precision": placement.precision, "kernels": placement.kernels,
        "instruction_set": backend.instruction_set(),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _digest(value: Source | np.ndarray | None) -> str | None:
    """Of a file's bytes, or of an array's values, its shape and dtype."""
    if value is None:
        return None
    if isinstance(value, Image):
        arrays = (value.pixels, value.alpha, value.known)
        return " ".join([value.sha256, *("" if array is None else _digest(array) for array in arrays)])
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype} {hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()}"
    return f"{digest_of(value)} {file_and_page(value)[1]}"


def _found(folder: Path, key: str) -> TiledPlan | None:
    """The same plan, kept in the folder from before; None where there is none, and what else was there is gone."""
    try:
        kept = TiledPlan.load(folder)
        if kept.key == key:
            return kept
    except (OSError, ValueError, KeyError, TypeError):
        pass
    clear(folder)
    return None


def _make_room(folder: Path, like: Image, guide: Image | None, grid: TileGrid, options: Mapping[str, Any]) -> None:
    needed = disk_bytes(like, guide, grid, options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OutputError(f"{folder} cannot be made ({error.strerror or error}); choose another place for the output.") from error
    if needed * _SPARE > free:
        raise OutputError(
            f"The tiles need {needed / 2**30:.1f} GiB on the disk of {folder.parent} for a while and {free / 2**30:.1f} are free; "
            f"free some space or choose another place for the output."
        )


def disk_bytes(like: Image, guide: Image | None, grid: TileGrid, options: Mapping[str, Any]) -> int:
    """Bytes that a plan's folder will hold at most."""
    pixels, scale = like.height * like.width, grid.rows.scale
    each = like.channels * like.dtype.itemsize + (like.alpha is not None) * like.dtype.itemsize
    tiles = len(grid) * grid.rows.tile * grid.columns.tile * scale * scale * like.channels * 4
    masks = pixels * (2 * (like.format == "fits" or like.dtype.kind == "f") + 5 * ("mask" in options))
    beside = 0 if guide is None else pixels * guide.channels * guide.dtype.itemsize
    return pixels * each * (1 + scale * scale) + tiles + masks + beside
