"""One job inside a worker: read, plan, fit, write to the staging folder."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from dipengine.errors import FitError, InputError
from dipengine.fitting.checkpoint import take_up, write_checkpoint
from dipengine.images import Image, check_writable, read_image, read_kernel, read_mask, write_image
from dipengine.restoration import begin_restoration, plan_restoration
from dipengine.scheduling.jobs import FileFacts
from dipengine.scheduling.memory import planned_bytes
from dipengine.scheduling.messages import Done, Start
from dipengine.scheduling.sources import side_outputs


class TimeLimit(FitError):
    """A fit took longer than it was allowed to; its checkpoint is written."""


class Work:
    """From a Start message to the files of its result."""

    def __init__(self, start: Start, options: Any, threads: int) -> None:
        """Read the image and decide everything; no memory is taken for the fit.

        Raises what reading and planning raise: InputError, ImageError, OutputError, DeviceError.
        """
        self.start = start
        self._options = options
        self._files: list[FileFacts] = []
        request = start.request
        self._image = start.image or self._read(start.input)
        self._settings = replace(request.settings, device=options.device, threads=threads)
        self._task_options = {**self._read_options(), **start.sides}
        self._truth = start.truth if request.truth is None else self._read(request.truth)
        self._plan = plan_restoration(self._image, request.task, self._task_options, self._settings)
        problem = self._plan.problem
        if start.staging is not None:
            os.makedirs(self._staged().parent, exist_ok=True)
            keeps_alpha = self._image.alpha is not None and not problem.fills_alpha
            check_writable(self._staged(), self._image, alpha=keeps_alpha, scale=problem.scale)
        self.iterations = self._plan.recipe.iterations
        self.bytes = planned_bytes(self._plan)
        self._fit: Any = None
        self._saved = time.monotonic()
        self._pace = 0.0  # seconds an iteration
        self.resumed_at = 0

    @property
    def iteration(self) -> int:
        return 0 if self._fit is None else self._fit.run.iteration

    def begin(self, threads: int) -> None:
        """Take the memory; go on from a checkpoint where there is one that fits."""
        self._fit = begin_restoration(
            self._image, self.start.request.task, self._task_options, self._settings, self._plan, truth=self._truth
        )
        self.set_threads(threads)
        if self.start.resume is not None and os.path.exists(self.start.resume):
            try:
                take_up(self.start.resume, self._fit.run, self._owner())
                self.resumed_at = self._fit.run.iteration
            except InputError:
                # Of another machine, build or input: starting anew is what the job asks for.
                self.resumed_at = 0
        self._saved = time.monotonic()

    def set_threads(self, count: int) -> None:
        if self._fit is not None:
            self._fit.run.set_threads(count)

    def advance(self, seconds: float) -> bool:
        """Iterations for about so long, one at least; True when the fit has finished. Raises FitError."""
        run = self._fit.run
        count = max(1, int(seconds / self._pace)) if self._pace else 1
        before, begin = run.iteration, time.monotonic()
        finished = run.advance(count)
        now = time.monotonic()
        self._pace = (now - begin) / max(1, run.iteration - before)
        if finished:
            return True
        limit = self._options.limit_time
        if limit is not None and run.seconds > limit:
            self.save()
            raise TimeLimit(f"It was not done after {limit:g} s (iteration {run.iteration} of at most {run.ceiling}); raise "
                           f"--limit-time and run again with --retry-failed to go on from there.")
        if now - self._saved >= self._options.checkpoint_every:
            self.save()
        return False

    def save(self) -> None:
        """Write the checkpoint of this attempt, where it has one."""
        if self.start.checkpoint is not None and self._fit is not None and self._fit.run.iteration:
            write_checkpoint(self.start.checkpoint, self._fit.run, self._owner())
            self._saved = time.monotonic()

    def finish(self) -> Done:
        """Deliver: write image, record and generator to the staging folder, in the order in which they take their places."""
        restored = self._fit.finish()
        record = restored.record
        start, staged = self.start, []
        if start.staging is not None:
            from dipengine.cli.side_files import write_json

            image, (about, generator) = self._staged(), side_outputs(start.output)
            if start.request.keep_generator:
                restored.generator.save(os.path.join(start.staging, generator))
                staged.append(generator)
            write_json(Path(start.staging) / about, record)
            write_image(image, restored.pixels, self._image, alpha=restored.alpha, scale=restored.scale)
            staged += [about, start.output]
        names = ("iterations", "delivered_iteration", "stop_reason", "rollbacks", "seconds", "psnr", "psnr_input", "ssim")
        result = {name: record[name] for name in names}
        value = restored if start.staging is None else None
        return Done(start.job, start.attempt, tuple(staged), tuple(self._files), result, value)

    def drop(self) -> None:
        """Give the memory back."""
        self._fit = None

    def _owner(self) -> str:
        """By which a checkpoint knows its job: what is asked, of which pixels."""
        files = ",".join(facts.sha256 for facts in self._files) or self._image.sha256
        return hashlib.sha256(f"{self.start.request.digest} {files}".encode()).hexdigest()

    def _staged(self) -> Path:
        return Path(self.start.staging) / self.start.output

    def _read(self, path: str) -> Image:
        status = os.stat(path) if os.path.exists(path) else None
        image = read_image(path, max_pixels=self.start.request.max_pixels)
        self._files.append(FileFacts(path, status.st_size, status.st_mtime_ns, image.sha256))
        return image

    def _read_options(self) -> dict[str, Any]:
        """The task's options, with the files that they name read; a mask is turned already where that was asked."""
        request = self.start.request
        options = dict(request.options)
        invert = bool(options.pop("invert_mask", False)) and "mask" in options
        for option in request.described.options:
            path = options.get(option.keyword)
            if path is None or option.kind not in ("mask", "image", "kernel"):
                continue
            if option.kind == "image":
                options[option.keyword] = self._read(path)
                continue
            self._files.append(facts_of(path))
            if option.kind == "mask":
                options[option.keyword] = read_mask(
                    path, self._image.pixels.shape, invert=invert, max_pixels=request.max_pixels
                )
            else:
                options[option.keyword] = read_kernel(path, max_pixels=request.max_pixels)
        return options


def facts_of(path: str) -> FileFacts:
    """Size, time and digest of a file. Raises InputError where it cannot be read."""
    try:
        status = os.stat(path)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror or error}); check the path.") from error
    return FileFacts(path, status.st_size, status.st_mtime_ns, digest)
