"""What a worker does for one Start message: an image as one fit, one tile of a large image, or the blending of its tiles."""

from __future__ import annotations

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipengine.errors import FitError, FormatError, InputError, OutputError
from dipengine.fitting.checkpoint import take_up, write_checkpoint
from dipengine.fitting.native_cohort import CohortSlot, NativeCohort
from dipengine.fitting.on_device import bring, bring_masks
from dipengine.fitting.run import advance_together
from dipengine.fitting.settings import Settings
from dipengine.fitting.warm_start import WarmStart
from dipengine.images import check_writable, read_header, write_image, write_json
from dipengine.restoration import Plan, RunningRestoration, begin_restoration, check_truth, plan_restoration
from dipengine.scheduling.cohorts import Cohorts, Room
from dipengine.scheduling.facts import Files, facts_of, keep_facts, kept_facts
from dipengine.scheduling.messages import Done, Start, Tiled
from dipengine.scheduling.sources import side_outputs
from dipengine.tasks.option_files import file_options, read_files, read_kernels
from dipengine.tiling import TiledPlan, TileRequest, needs_tiles, plan_tiles, refuse_in_tiles, tiled_record

if TYPE_CHECKING:
    from dipengine.scheduling.worker import WorkerOptions

_RESULT = ("iterations", "delivered_iteration", "stop_reason", "rollbacks", "seconds", "psnr", "psnr_input", "ssim")
_BLENDING = 256 << 20  # bytes of rows that pass through memory while tiles are blended, about


class TimeLimit(FitError):
    """A fit took longer than it was allowed to; its checkpoint is written."""


class Work(ABC):
    """Something with a beginning, turns and an end.

    bytes: that it will hold, known when it has been made. iterations: at most.
    """

    bytes: int
    iterations: int
    iteration = 0
    remark = ""  # to be said in the ledger, once it has begun

    def __init__(self, start: Start) -> None:
        self.start = start

    @property
    def cohort(self) -> NativeCohort | None:
        """Works of one cohort take their turns together."""
        return None

    @abstractmethod
    def begin(self, threads: int) -> bool:
        """Take the memory; False where that has to wait until others have left."""

    def turn(self, seconds: float) -> None:
        """Go on for about so long."""

    @abstractmethod
    def settled(self) -> bool:
        """Between two turns: save what is due; True when there is no more to do."""

    @abstractmethod
    def finish(self) -> Done:
        """What comes of it, written to the staging folder."""

    def set_threads(self, count: int) -> None:
        """CPU threads from the next turn on."""

    def save(self) -> None:
        """Write a checkpoint, where there is something to save."""

    def close(self) -> None:
        """Give the memory back."""


def work_of(start: Start, options: WorkerOptions, threads: int, cohorts: Cohorts) -> Work | Tiled:
    """Read what is needed and decide everything; no memory is taken for the fit.

    Raises what reading and planning raise: InputError, ImageError, OutputError, DeviceError.
    """
    if start.stage == "tile":
        return TileFit(start, options, cohorts, threads)
    if start.stage == "blend":
        return Blend(start)
    settings = replace(start.request.settings, device=options.device, threads=threads)
    if start.tiles is not None and start.image is None and start.request.tile != "none":
        tiled = _in_tiles(start, options, settings)
        if tiled is not None:
            return tiled
    return ImageFit(start, options, cohorts, settings)


def _in_tiles(start: Start, options: WorkerOptions, settings: Settings) -> Tiled | None:
    request = start.request
    named = read_kernels(request.described, request.options, max_pixels=request.max_pixels)
    wish = {"tile": TileRequest.parse(request.tile), "budget": options.budget, "max_pixels": request.max_pixels}
    if not needs_tiles(start.input, request.task, named, settings, **wish):
        return None
    asked = {"generators": request.keep_generator, "init-from": request.init_from, "warm": start.previous or start.keep_weights}
    refuse_in_tiles(*(name for name, value in asked.items() if value))
    files = [facts_of(path) for path in (start.input, *request.side_files())]
    tiled = plan_tiles(start.input, request.task, named, settings, folder=start.tiles, **wish)
    if tiled.image.like.sha256 != files[0].sha256:
        raise OutputError(f"{start.input} has changed while it was read; it is read again.")
    if request.truth is not None:
        check_truth(tiled.image.like, read_header(request.truth, max_pixels=request.max_pixels), tiled.shape)
    keep_facts(tiled.folder, files)
    _check_staged(start, lambda path: check_writable(path, tiled.restored_like, alpha=tiled.keeps_alpha))
    pending = tuple(tile.index for tile in tiled.pending)
    seconds = sum(record["seconds"] for record in tiled.records().values())
    return Tiled(start.job, start.attempt, pending, len(tiled.tiles), str(tiled.grid), seconds)


def _staged(start: Start) -> Path:
    return Path(start.staging) / start.output


def _check_staged(start: Start, check: Callable[[Path], None]) -> None:
    staged = _staged(start)
    os.makedirs(staged.parent, exist_ok=True)
    try:
        check(staged)
    except FormatError as error:  # nobody has asked for a file in the staging folder
        raise FormatError(str(error).replace(os.fspath(staged), start.output)) from error


# ---- fits -----------------------------------------------------------------------------------------------------------


class Fit(Work):
    """A fit that is advanced in turns, saved now and then, and goes on from the checkpoint of an earlier attempt."""

    _plan: Plan

    def __init__(self, start: Start, options: WorkerOptions, cohorts: Cohorts) -> None:
        super().__init__(start)
        self._options = options
        self._cohorts = cohorts
        self._room: Room | None = None
        self._fit: RunningRestoration | None = None
        self._saved = time.monotonic()
        self._pace = 0.0  # seconds an iteration

    @abstractmethod
    def _begin(self, cohort: NativeCohort | None) -> RunningRestoration: ...

    @abstractmethod
    def _owner(self) -> str:
        """By which a checkpoint knows whose fit it is."""

    @property
    def cohort(self) -> NativeCohort | None:
        return getattr(self._fit.run.fit, "cohort", None) if self._fit is not None else None

    @property
    def iteration(self) -> int:
        return 0 if self._fit is None else self._fit.run.iteration

    def begin(self, threads: int) -> bool:
        self._room = self._cohorts.room_for(self._plan)
        if self._room is None:
            return False
        self._fit = self._begin(self._room.cohort)
        self.set_threads(threads)
        if self.start.resume is not None and os.path.exists(self.start.resume):
            try:
                take_up(self.start.resume, self._fit.run, self._owner())
            except InputError as error:
                self.remark = f"begun anew: {error}"  # its checkpoint is of another machine, build or input
        self._saved = time.monotonic()
        return True

    def set_threads(self, count: int) -> None:
        if self._fit is not None:
            self._fit.run.set_threads(count)

    def turn(self, seconds: float) -> None:
        run, begin = self._fit.run, time.monotonic()
        before = run.iteration
        run.advance(max(1, int(seconds / self._pace)) if self._pace else 1)
        self._pace = (time.monotonic() - begin) / max(1, run.iteration - before)

    def settled(self) -> bool:
        run = self._fit.run
        if run.finished:
            return True
        limit = self._options.limit_time
        if limit is not None and self.start.spent + run.seconds > limit:
            self.save()
            raise TimeLimit(f"It was not done after {limit:g} s (iteration {run.iteration} of at most {run.ceiling}); raise "
                            f"--limit-time and run again with --retry-failed to go on from there.")
        if time.monotonic() - self._saved >= self._options.checkpoint_every:
            self.save()
        return False

    def close(self) -> None:
        room, fit = self._room, self._fit
        self._room = self._fit = None
        if fit is not None and isinstance(fit.run.fit, CohortSlot):
            fit.run.fit.close()
        if room is not None:
            self._cohorts.left(room)

    def save(self) -> None:
        if self.start.checkpoint is not None and self.iteration:
            write_checkpoint(self.start.checkpoint, self._fit.run, self._owner())
            self._saved = time.monotonic()


def turn_together(cohort: NativeCohort, fits: Sequence[Fit], seconds: float) -> dict[Fit, FitError]:
    """A turn of about `seconds` of fits in the slots of one cohort; those that fail by it, which end alone, and why.

    Raises FitError where the memory is used up.
    """
    pace = sum(fit._pace for fit in fits)
    before, begin = sum(fit.iteration for fit in fits), time.monotonic()
    by_run = {fit._fit.run: fit for fit in fits}
    failed = advance_together(cohort, by_run, max(1, int(seconds / pace)) if all(fit._pace for fit in fits) else 1)
    each = (time.monotonic() - begin) / max(1, sum(fit.iteration for fit in fits) - before)
    for fit in fits:
        fit._pace = each
    return {by_run[run]: error for run, error in failed.items()}


class ImageFit(Fit):
    """An image as one fit."""

    def __init__(self, start: Start, options: WorkerOptions, cohorts: Cohorts, settings: Settings) -> None:
        super().__init__(start, options, cohorts)
        request = start.request
        self._files = Files(request.max_pixels)
        self._as_read = start.image or self._files.image(start.input)
        self._settings = settings
        # From here until it is encoded, the image of a fit on a GPU is there.
        self._image = bring(self._as_read, settings.device)
        options = {**self._read_options(), **start.sides}
        self._task_options = bring_masks(request.task, options, self._image.pixels)
        truth = start.truth if request.truth is None else self._files.image(request.truth)
        self._truth = None if truth is None else bring(truth, settings.device)
        self._plan = plan_restoration(self._image, request.task, self._task_options, settings)
        problem = self._plan.problem
        if start.staging is not None:
            alpha = self._image.alpha is not None and not problem.fills_alpha
            _check_staged(start, lambda path: check_writable(path, self._as_read, alpha=alpha, scale=problem.scale))
        self.iterations = self._plan.recipe.iterations
        self.bytes = cohorts.bytes_of(self._plan)
        self._cold: str | None = None  # why the frame before is not begun with
        self._init = start.init
        if request.init_from is not None:
            self._files.note(request.init_from)
            self._init = WarmStart.load(request.init_from)
        if start.previous is not None:
            path, name = start.previous
            self._init = replace(WarmStart.load(path), kind="previous", source=name)

    def _begin(self, cohort: NativeCohort | None) -> RunningRestoration:
        def begin(init: WarmStart | None) -> RunningRestoration:
            return begin_restoration(
                self._image, self.start.request.task, self._task_options, self._settings, self._plan, truth=self._truth, init=init,
                cohort=cohort,
            )

        try:
            return begin(self._init)
        except InputError as error:
            if self.start.previous is None:
                raise
            # Of another size, as a rule: a series goes on with this frame's own.
            self._cold, self._init = str(error), None
            return begin(None)

    def _owner(self) -> str:
        digests = [facts.sha256 for facts in self._files.facts] or [self._image.sha256]
        begun = [] if self._init is None else [self._init.sha256]
        return hashlib.sha256(" ".join([self.start.request.digest, *digests, *begun]).encode()).hexdigest()

    def finish(self) -> Done:
        restored = self._fit.finish().on_host()
        start, staged = self.start, []
        if self._cold is not None:
            restored.record["init_from"] = {"kind": "previous", "source": start.previous[1], "refused": self._cold}
        if start.keep_weights is not None:
            os.makedirs(os.path.dirname(os.path.join(start.staging, start.keep_weights)), exist_ok=True)
            restored.generator.save(os.path.join(start.staging, start.keep_weights))
            staged.append(start.keep_weights)
        if start.staging is not None:
            if start.request.keep_generator:
                staged.append(side_outputs(start.output)[1])
                restored.generator.save(os.path.join(start.staging, staged[0]))
            _write_record(start, restored.record, staged)
            write_image(_staged(start), restored.pixels, self._as_read, alpha=restored.alpha, scale=restored.scale)
            staged.append(start.output)
        value = restored if start.staging is None else None
        return Done(start.job, start.attempt, tuple(staged), tuple(self._files.facts), _result(restored.record), value)

    def _read_options(self) -> dict[str, Any]:
        """The task's options, with the files that they name read; a mask is turned already where that was asked."""
        request, files = self.start.request, self._files
        options = read_files(
            request.described, request.options, self._as_read.pixels.shape, max_pixels=request.max_pixels, image=files.image
        )
        known = {facts.path for facts in files.facts}
        for name in file_options(request.described):
            path = request.options.get(name)
            if path is not None and path not in known:
                files.note(path)
        return options


class TileFit(Fit):
    """One tile of an image whose plan of tiles is made."""

    def __init__(self, start: Start, options: WorkerOptions, cohorts: Cohorts, threads: int) -> None:
        super().__init__(start, options, cohorts)
        self._tiled = TiledPlan.load(Path(start.tiles))
        image, task_options, settings, plan = self._tiled.tile_plan(start.tile)
        self._plan = replace(plan, placement=replace(plan.placement, threads=threads))
        self._given = (image, self._tiled.task, task_options, replace(settings, threads=threads), self._plan)
        self.iterations = plan.recipe.iterations
        self.bytes = cohorts.bytes_of(self._plan)

    def _begin(self, cohort: NativeCohort | None) -> RunningRestoration:
        return begin_restoration(*self._given, cohort=cohort)

    def _owner(self) -> str:
        return f"{self._tiled.key} {self.start.tile}"

    def finish(self) -> Done:
        restored = self._fit.finish()
        self._tiled.add(self.start.tile, restored.generator.delivered, restored.record)
        return Done(self.start.job, self.start.attempt, (), (), {"seconds": restored.record["seconds"]})


class Blend(Work):
    """The tiles of an image, all done, become its output."""

    bytes = _BLENDING
    iterations = 1

    def begin(self, threads: int) -> bool:
        return True

    def settled(self) -> bool:
        return True

    def finish(self) -> Done:
        start = self.start
        tiled = TiledPlan.load(Path(start.tiles))
        measured = {}
        result = tiled.assemble()
        if start.request.truth is not None:
            from dipengine.tiling.command import measured_against, truth_of

            truth = truth_of(Path(start.request.truth), tiled, tiled.folder, start.request.max_pixels)
            measured = measured_against(tiled, result, truth)
        record, staged = tiled_record(tiled, measured), []
        os.makedirs(_staged(start).parent, exist_ok=True)
        _write_record(start, record, staged)
        tiled.write(_staged(start), result)
        return Done(start.job, start.attempt, (*staged, start.output), kept_facts(tiled.folder), _result(record))


# ---- what is written ------------------------------------------------------------------------------------------------


def _write_record(start: Start, record: dict[str, Any], staged: list[str]) -> None:
    name = side_outputs(start.output)[0]
    write_json(Path(start.staging) / name, record)
    staged.append(name)


def _result(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in _RESULT}
