"""Restore one file in tiles from beginning to end, going on where an earlier run of the same command was stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dipengine.errors import InputError, OutputError
from dipengine.fitting.progress import ProgressCallback
from dipengine.fitting.settings import Settings
from dipengine.images import LargeImage, RawPixels, check_writable, decode, read_header
from dipengine.restoration import check_truth, check_units, psnr_peak
from dipengine.tiling import measuring
from dipengine.tiling.grid import Tile
from dipengine.tiling.plan import TiledPlan
from dipengine.tiling.planning import plan_tiles, remove
from dipengine.tiling.record import tiled_record
from dipengine.tiling.restoring import restore_tile
from dipengine.tiling.sizes import TileRequest
from dipengine.tiling.whole import Survey


class TilesInterrupted(KeyboardInterrupt):
    """Ctrl-C between two tiles or within one: `done` of `count` are kept for the next run."""

    def __init__(self, done: int, count: int) -> None:
        super().__init__(f"interrupted after {done} of {count} tiles")
        self.done, self.count = done, count


def tiles_folder(output: Path) -> Path:
    """Where the tiles of an output are kept while it is made: beside it."""
    return output.with_name(f".{output.name}.tiles")


def restore_file(
    source: Path,
    output: Path,
    task: str,
    options: Mapping[str, Any],
    settings: Settings,
    *,
    tile: TileRequest,
    truth: Path | None = None,
    max_pixels: int,
    progress: Callable[[TiledPlan, Tile], ProgressCallback | None] = lambda tiled, tile: None,
) -> dict[str, Any] | None:
    """Restore `source` in tiles into `output`; returns the record, None where the image is one fit.

    options: as `plan_tiles` takes them. progress: asked at each tile for what shall hear of its fit. Finished tiles are kept when
    a run ends early, and the next run with the same input and parameters goes on with the others. Raises what `plan_tiles` and
    `restore_image` raise, and TilesInterrupted.
    """
    folder = tiles_folder(output)
    with _alone(folder, output):
        tiled = plan_tiles(source, task, options, settings, folder=folder, tile=tile, max_pixels=max_pixels)
        if tiled is None:
            return None
        try:
            check_writable(output, tiled.restored_like, alpha=tiled.keeps_alpha)
            compared = None if truth is None else truth_of(truth, tiled, folder, max_pixels)
            for each in tiled.pending:
                restore_tile(tiled, each.index, progress=progress(tiled, each))
            result = tiled.assemble()
            record = tiled_record(tiled, {} if compared is None else measured_against(tiled, result, compared))
            tiled.write(output, result)
        except KeyboardInterrupt as stop:
            raise TilesInterrupted(len(tiled.tiles) - len(tiled.pending), len(tiled.tiles)) from stop
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"The tiles in {folder} cannot be kept ({error.strerror or error}); free some space.") from error
        finally:
            if not any(tiled.done(each.index) for each in tiled.tiles):
                remove(folder)
        remove(folder)
        return record


@contextmanager
def _alone(folder: Path, output: Path) -> Iterator[None]:
    """Within: no other run has this folder. Raises InputError where one has."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        folder.mkdir(exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made ({error.strerror or error}); choose another place for the output.") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"Another run is writing {output}; wait for it, or choose another output.") from error
    else:
        yield
    finally:
        os.close(held)
        with suppress(OSError):
            folder.rmdir()  # where nothing is kept in it


def truth_of(path: Path, tiled: TiledPlan, folder: Path, max_pixels: int) -> LargeImage:
    check_truth(tiled.image.like, read_header(path, max_pixels=max_pixels), tiled.shape)
    truth = decode(path, folder, "truth", max_pixels=max_pixels)
    if truth.like.dtype != tiled.image.like.dtype:
        samples = (Survey.of(image, known).sample for image, known in ((tiled.image, tiled.known), (truth, truth.known)))
        check_units(tiled.values, *samples)
    return truth


def measured_against(tiled: TiledPlan, result: RawPixels, truth: LargeImage) -> dict[str, float | None]:
    """As `restoration` measures an image in memory."""
    channels = tiled.shape[2]
    sample = Survey.of(truth, truth.known).sample
    peak = psnr_peak(tiled.values, tiled.settings, tiled.image.like, sample)

    def restored(rows: slice):
        return result.read(rows)[:, :, :channels]

    def given(rows: slice):
        return tiled.image.window(rows).pixels

    def true(rows: slice):
        return truth.window(rows)

    same_size = tiled.image.like.pixels.shape == tiled.shape and tiled.image.known is None
    return {
        "psnr_peak": peak,
        "psnr_input": measuring.psnr(given, true, tiled.shape, peak) if same_size else None,
        "psnr": measuring.psnr(restored, true, tiled.shape, peak),
        "ssim": measuring.ssim(restored, true, tiled.shape, peak),
    }
