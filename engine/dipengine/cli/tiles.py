"""`--tile`: the verbs that restore one image, in tiles, where the whole does not fit in memory or the caller wants it."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

from dipengine.cli.reports import say
from dipengine.errors import DipEngineError
from dipengine.fitting.progress import ProgressBar, Report
from dipengine.fitting.settings import Settings
from dipengine.tasks.base import Task


def add_option(fit: Any) -> None:
    """`--tile auto|none|SIDE[,OVERLAP]`."""
    fit.add_argument(
        "--tile", default="auto", metavar="auto|none|SIDE[,OVERLAP]",
        help="fit overlapping tiles of at most SIDE input pixels, each by itself, and blend them; a run that was stopped goes on "
        "where it was. auto: where the whole does not fit in memory (default: auto; overlap: an eighth of the side)",
    )


def run(task: Task, parsed: argparse.Namespace, settings: Settings) -> int | None:
    """Restore the image in tiles; returns the exit status, None where it is one fit."""
    from dipengine.cli.main import INTERRUPTED
    from dipengine.images import write_json
    from dipengine.tasks.option_files import read_kernels
    from dipengine.tiling import TileRequest, TilesInterrupted, needs_tiles, refuse_in_tiles, restore_file, tiles_folder

    request = TileRequest.parse(parsed.tile)
    if request.mode == "none":
        return None
    limit = parsed.max_pixels
    options = read_kernels(task, {option.keyword: getattr(parsed, option.keyword) for option in task.options}, max_pixels=limit)
    needed = needs_tiles(parsed.input, task.name, options, settings, tile=request, max_pixels=limit)
    if request.mode == "auto" and not needed:
        return None
    if needed:
        refuse_in_tiles(*(name for name in ("generator", "export", "init-from", "checkpoint") if getattr(parsed, name.replace("-", "_"))))
    bar = nullcontext() if parsed.quiet else _TileBar(task.name)
    try:
        with bar as shown:
            progress = {} if shown is None else {"progress": shown.of_tile}
            record = restore_file(
                parsed.input, parsed.output, task.name, options, settings, tile=request, truth=parsed.truth, max_pixels=limit,
                **progress,
            )
    except TilesInterrupted as stop:
        kept = f"; {tiles_folder(parsed.output)} keeps them, and the same command goes on from there" if stop.done else ""
        say(f"dipengine: {stop}, {parsed.output} was not written{kept}.")
        return INTERRUPTED
    except DipEngineError:
        if tiles_folder(parsed.output).exists():
            say(f"dipengine: the tiles that are done are kept in {tiles_folder(parsed.output)}, for the same command to go on.")
        raise
    if record is None:
        return None
    if parsed.record:
        write_json(parsed.record, record)
    if not parsed.quiet:
        say(_summary(parsed, record))
    return 0


class _TileBar(ProgressBar):
    """One bar over all tiles, as if each ran to its ceiling."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar = None

    def of_tile(self, tiled: Any, tile: Any) -> Any:
        """What shall hear of the fit of `tile`."""
        numbers = [each.index for each in tiled.tiles]
        before, count = numbers.index(tile.index), len(numbers)

        def hear(report: Report) -> None:
            if self._bar is None and report.iteration == 1:
                self._guarded(self._open, count * report.ceiling, self._label)
            done = before * report.ceiling + report.iteration
            self._guarded(self._place, f"{self._label} (tile {before + 1} of {count})", done)
            self._guarded(self._show_loss, report)

        return hear

    def _place(self, label: str, done: int) -> None:
        if self._bar is not None:
            self._bar.set_description(label, refresh=False)
            self._bar.update(done - self._bar.n)

    def _show_loss(self, report: Report) -> None:
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{report.loss:.5f}", refresh=False)


def estimated_noise(record: dict[str, Any]) -> str:
    """For a summary: how strong the noise was found to be, where nobody told."""
    parameters = record["parameters"]
    return f", noise estimated at sigma {parameters['sigma']:.3g}" if parameters.get("sigma_estimated") else ""


def _summary(parsed: argparse.Namespace, record: dict[str, Any]) -> str:
    tiles = record["tiles"]
    height, width = tiles["tile"]
    text = f"{parsed.output}: {tiles['tiles']} tiles of {width}x{height}, {record['iterations']} iterations "
    text += f"in {record['seconds']:.1f} s{estimated_noise(record)}"
    if record["psnr"] is not None:
        text += f", PSNR {record['psnr']:.2f} dB"
        if record["psnr_input"] is not None:
            text += f" (input {record['psnr_input']:.2f} dB)"
    return text
