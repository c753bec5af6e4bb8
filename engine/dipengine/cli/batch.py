"""`dipengine batch`: many images, with a ledger, so that nothing is lost whenever it ends."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipengine.cli import arguments, restore, tiles
from dipengine.cli.reports import say, tell
from dipengine.errors import InputError, OutputError
from dipengine.fitting.progress import seconds_between
from dipengine.images.limits import MAX_PIXELS
from dipengine.tasks import TASKS

if TYPE_CHECKING:
    from dipengine.scheduling.batch import Tally

_SHOWN = 10  # failures that are listed on the screen; all are in the summary


def add_parser(verbs: Any, words: Sequence[str]) -> None:
    """The verb; `words` are the whole command line: the options are those of the task that it names."""
    task = TASKS[_task_named(words)]
    parser = verbs.add_parser(
        "batch", help="restore many images, resumably",
        description="Restore many images: folders, patterns, images or a manifest. Run the same command again to go on after any end.",
    )
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help="folders, patterns and images (of a stack all pages), or one "
                        "manifest (.csv, .jsonl, .parquet; column input, others: task, output, mask, priority, truth, any option)")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="folder of the outputs, the ledger and the summary")
    tasks = [name for name, known in TASKS.items() if not known.python_only]
    parser.add_argument("--task", choices=tasks, default="denoise", help="default: denoise; --task NAME --help shows its options")
    own = parser.add_argument_group(f"options of {task.name}")
    for option in task.options:
        restore.add_task_option(own, option, required=False)
    restore.add_fit_options(parser.add_argument_group("fit"))
    files = parser.add_argument_group("files")
    series = parser.add_argument_group("weights to begin with (default: random ones)")
    series.add_argument("--init-from", type=Path, metavar="FILE", help="of every image: a generator or a checkpoint")
    series.add_argument("--warm", choices=("previous",),
                        help="previous: of every image in a folder, those of the one before it (frames, focal stacks)")
    files.add_argument("--format", metavar="png|tiff|...", help="ending of the outputs (default: that of the input; PNG for JPEG)")
    tiles.add_option(files)
    files.add_argument("--generators", action="store_true", help="keep every fitted generator beside its image")
    files.add_argument("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="refuse larger images (200 million)")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--ledger", type=Path, metavar="FILE", help="on a local disk (default: DIR/.dipengine/ledger.sqlite)")
    engine.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="do nothing again that is done (default), or all")
    engine.add_argument("--retry-failed", action="store_true", help="try those again that failed")
    engine.add_argument("--retries", type=int, default=2, metavar="N", help="after accidents, of each image (default: 2)")
    engine.add_argument("--workers", type=int, metavar="N", help="images at once on the CPU (default: one a core)")
    engine.add_argument("--checkpoint-every", type=float, default=60.0, metavar="S", help="seconds (default: 60)")
    engine.add_argument("--limit-memory", type=arguments.memory_size, metavar="8G", help="of all fits of a device together; an image that needs more "
                        "goes in tiles, or fails")
    engine.add_argument("--limit-time", type=float, metavar="S", help="seconds of fitting, of each image")
    engine.add_argument("--dry-run", action="store_true", help="list what would be done, and do nothing")
    engine.add_argument("--quiet", action="store_true", help="no progress; failures are shown all the same")
    parser.set_defaults(run=run)


def _task_named(words: Sequence[str]) -> str:
    """The task on a command line that argparse has not seen yet."""
    for place, word in enumerate(words):
        name = word.partition("=")[2] if word.startswith("--task=") else None
        if word == "--task" and place + 1 < len(words):
            name = words[place + 1]
        if name in TASKS and not TASKS[name].python_only:
            return name
    return "denoise"


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit status: 0 all done, 1 some failed, 130 interrupted."""
    from dipengine.cli.main import INTERRUPTED
    from dipengine.scheduling.batch import SUMMARY, Batch
    from dipengine.scheduling.devices import plan_devices
    from dipengine.scheduling.jobs import Request, given
    from dipengine.scheduling.pool import Pool
    from dipengine.scheduling.sources import jobs_of
    from dipengine.scheduling.worker import WorkerOptions

    for name in ("retries", "checkpoint_every", "limit_time"):
        value = getattr(parsed, name)
        if value is not None and not value >= 0:
            raise InputError(f"{name.replace('_', '-')} is {value}; give 0 or more.")
    task = TASKS[parsed.task]
    options = {option.keyword: _path_text(getattr(parsed, option.keyword)) for option in task.options}
    request = Request(
        task.name, given(options), restore.settings_of(parsed), tile=parsed.tile, init_from=_path_text(parsed.init_from),
        keep_generator=parsed.generators, max_pixels=parsed.max_pixels,
    )
    if parsed.warm and parsed.init_from:
        raise InputError("--init-from and --warm both say what to begin with; give one of them.")
    jobs = jobs_of(parsed.sources, parsed.output, request, parsed.format, in_order=parsed.warm is not None)
    if parsed.dry_run:
        for job in jobs:
            tell(f"{job.request.task}: {job.input} -> {parsed.output / job.output}")
        return 0
    devices = plan_devices(parsed.device, workers=parsed.workers, threads=parsed.threads, limit_memory=parsed.limit_memory)
    batch = Batch(jobs, parsed.output, ledger=parsed.ledger, resume=parsed.resume, retry_failed=parsed.retry_failed)
    try:
        show = _Progress(batch.tally, parsed.quiet)
        options = WorkerOptions(checkpoint_every=parsed.checkpoint_every, limit_time=parsed.limit_time)
        summary, trouble = batch.places.folder / SUMMARY, None
        try:
            with _signals(show), show:
                batch.run(Pool(devices, options), retries=parsed.retries, progress=show)
            batch.write_summary()
        except OutputError as error:
            trouble = error
        tally = batch.tally
    finally:
        batch.close()
    _report(tally, summary, parsed.quiet)
    if trouble is not None:
        say(f"dipengine: {trouble}")
        return 1
    if tally.halted is not None:
        say(f"dipengine: stopped: {tally.halted} Run the same command again to go on.")
    if tally.interrupted:
        return INTERRUPTED
    return 1 if tally.failed or tally.halted else 0


def _path_text(value: Any) -> Any:
    return os.path.realpath(value) if isinstance(value, Path) else value


class _Progress:
    """The whole batch on one line: images, images an hour, time left. True once somebody wants it to end."""

    def __init__(self, tally: "Tally", quiet: bool) -> None:
        self.asked_to_stop = False
        self._quiet = quiet
        self._before = tally.finished
        self._begin = time.monotonic()
        self._bar: Any = None
        self._total = tally.total
        self._last: tuple[Tally, float] | None = None
        self._next = 0.0  # seconds from the beginning: when it is shown again

    def __enter__(self) -> "_Progress":
        if not self._quiet and sys.stderr is not None:
            from tqdm import tqdm

            with suppress(OSError, ValueError):
                self._bar = tqdm(total=self._total, initial=self._before, unit="image", dynamic_ncols=True,
                                 bar_format="{percentage:3.0f}%|{bar}| {desc}")
        return self

    def __call__(self, tally: "Tally", under_way: float) -> bool:
        self._last = tally, under_way
        if self._bar is not None:
            try:
                self._show(tally, under_way)
            except (OSError, ValueError):  # nobody watches any more
                self._bar.disable, self._bar = True, None
        return self.asked_to_stop

    def _show(self, tally: "Tally", under_way: float) -> None:
        seconds = time.monotonic() - self._begin
        if seconds < self._next and not self.asked_to_stop:
            return
        self._next = seconds + seconds_between()
        gained = tally.finished - self._before + under_way
        self._bar.n = min(self._total, round(tally.finished + under_way, 2))
        text = f"{tally.finished}/{tally.total} images"
        if gained > 0 and seconds > 1:
            left = (tally.total - tally.finished - under_way) * seconds / gained
            text += f", {gained / seconds * 3600:.3g} an hour, {self._bar.format_interval(max(0, left))} left"
        if tally.failed:
            text += f", {len(tally.failed)} failed"
        if self.asked_to_stop:
            text += ", stopping: writing checkpoints (Ctrl-C again: at once)"
        self._bar.set_description_str(text, refresh=False)
        self._bar.refresh()

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._next = 0.0
                if self._last is not None:
                    self._show(*self._last)
                self._bar.close()


@contextmanager
def _signals(show: _Progress) -> Iterator[None]:
    """Ctrl-C or a scheduler's SIGTERM: once, checkpoint and stop; twice, stop now."""

    def handle(number: int, frame: object) -> None:
        if show.asked_to_stop:
            raise KeyboardInterrupt("run the same command again to go on")
        show.asked_to_stop = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(tally: "Tally", summary: Path, quiet: bool) -> None:
    lines = []
    if not quiet:
        rate = f", {tally.done / tally.seconds * 3600:.0f} images an hour" if tally.done and tally.seconds else ""
        before = f" ({tally.already_done} before)" if tally.already_done else ""
        lines.append(f"{tally.already_done + tally.done} of {tally.total} images done{before}, {len(tally.failed)} failed, in "
                     f"{tally.seconds:.1f} s{rate}; {summary}")
        lines += [f"done again: {line}" for line in tally.changed[:_SHOWN]]
    lines += [f"failed: {source}: {reason}" for source, reason in tally.failed[:_SHOWN]]
    if len(tally.failed) > _SHOWN:
        lines.append(f"and {len(tally.failed) - _SHOWN} more failed; {summary} lists all.")
    if tally.interrupted:
        lines.append("interrupted: run the same command again to go on.")
    if lines:
        say("\n".join(lines))
