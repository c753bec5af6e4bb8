"""Many restorations from Python: futures in, results out, in the order of completion, never more waiting than asked for."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from queue import SimpleQueue
from typing import Any

from dipengine.api import Result, checked_options, given_settings, warm_start
from dipengine.errors import DipEngineError, FitError, InputError
from dipengine.images import from_array
from dipengine.images.arrays import with_alpha
from dipengine.scheduling.devices import plan_devices
from dipengine.scheduling.driver import Driver
from dipengine.scheduling.jobs import Job, Request, given
from dipengine.scheduling.ledger import Ledger, Row
from dipengine.scheduling.messages import Done
from dipengine.scheduling.pool import Executors, Pool
from dipengine.scheduling.worker import WorkerOptions
from dipengine.tasks import task_named
from dipengine.tasks.option_files import file_options

_OF_SUBMIT = ("priority", "axes", "alpha", "truth", "init_from")  # that are no options of a task or a fit
_LOOK = 0.05  # seconds until the driver sees what was submitted


@dataclass
class _Asked:
    """What the driver has to know of a submission besides its job."""

    future: Future
    back: Callable[[Any], Any]
    alpha: bool
    more: dict[str, Any]


class Engine:
    """Restores many images at once, in processes of its own; results are those of `dipengine.restore`, bit for bit.

        with dipengine.Engine() as engine:
            future = engine.submit(image, sigma=25)              # as dipengine.denoise
            for done in engine.map(images, "superres", factor=2):
                print(done.index, done.result().image.shape)     # in the order of completion

    Images are arrays, or paths of files. A folder of files that has to survive a crash is `dipengine batch`'s.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        workers: int | None = None,
        threads: int | None = None,
        limit_memory: int | None = None,
        limit_time: float | None = None,
        retries: int = 2,
        queue: int | None = None,
        executors: Executors | None = None,
    ) -> None:
        """Start the workers.

        device: "auto" (all GPUs, else the CPU), "cpu", "cuda:0,cuda:1". workers: processes of the CPU, by default one a core.
        threads: cores of the CPU. limit_memory: bytes that all fits of a device may hold. limit_time: seconds of fitting of one
        image. retries: of an image after an accident (its worker died). queue: images that may wait before `submit` does, by
        default twice as many as run at once. executors: workers of another kind.

        Raises DeviceError for a device that is not here, InputError for numbers below 1.
        """
        devices = plan_devices(device, workers=workers, threads=threads, limit_memory=limit_memory)
        self._queue = queue if queue is not None else 2 * sum(plan.workers * plan.slots for plan in devices)
        if self._queue < 1:
            raise InputError(f"queue is {queue}; ask for at least 1.")
        self._ledger = Ledger(None)
        self._driver = Driver(
            self._ledger, executors or Pool(devices, WorkerOptions(checkpoint_every=float("inf"), limit_time=limit_time)), self,
            retries=retries, start=lambda row: self._asked[row.id].more,
        )
        self._asked: dict[int, _Asked] = {}
        self._inbox: deque[tuple[Job, _Asked]] = deque()
        self._numbers = count()
        self._changed = threading.Condition()
        self._unfinished = 0
        self._closing: str | None = None  # "finish" or "now"
        self._error: BaseException | None = None
        # Futures are settled on a thread of their own: their callbacks may take long, submit, wait and close.
        self._settled: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._settling = threading.Thread(target=self._settle_all, name="dipengine futures", daemon=True)
        self._thread = threading.Thread(target=self._run, name="dipengine", daemon=True)
        self._settling.start()
        self._thread.start()

    # ---- the caller's side --------------------------------------------------------------------------------------

    def submit(
        self, image: Any, task: str = "denoise", *, priority: int = 0, axes: str | None = None, alpha: bool = False,
        truth: Any = None, init_from: Any = None, **options: Any,
    ) -> Future:
        """Queue one image; the future's result is a `dipengine.Result`, or raises what `dipengine.restore` would.

        image: an array as `dipengine.restore` takes it, or the path of a file (then the result's image is a NumPy array
        H x W x C). options: the task's own and those of the fit, as there (devices and threads are the engine's). truth,
        init_from: as there. priority: higher ones first. Waits while `queue` images are waiting. Raises InputError for options
        that make no sense, DipEngineError after `close`.
        """
        request, sides = self._request(task, axes, options)
        more: dict[str, Any] = {"sides": sides, "init": warm_start(init_from)}
        if isinstance(image, (str, os.PathLike)):
            source, back = os.path.abspath(image), lambda pixels: pixels
        else:
            more["image"], back = from_array(image, axes=axes, alpha=alpha)
            source = "array"
        if isinstance(truth, (str, os.PathLike)):
            request = replace(request, truth=os.path.abspath(truth))
        elif truth is not None:
            more["truth"] = from_array(truth, axes=axes, alpha=alpha)[0]
        future: Future = Future()
        future.set_running_or_notify_cancel()  # from here on it cannot be taken back
        with self._changed:
            self._changed.wait_for(lambda: self._unfinished < self._queue + self._at_once or self._closing or self._error)
            self._check_open()
            self._unfinished += 1
            self._inbox.append((Job(source, str(next(self._numbers)), request, priority), _Asked(future, back, alpha, more)))
        return future

    def _request(self, task: str, axes: str | None, options: Mapping[str, Any]) -> tuple[Request, dict[str, Any]]:
        """What is asked by keyword arguments, and the arrays among them. Raises InputError."""
        for name in ("device", "threads"):
            if name in options:
                raise InputError(f"{name} is the engine's, for all images; give it to dipengine.Engine.")
        settings, own = given_settings(options)
        if task_named(task).python_only:
            raise InputError(f"The task {task!r} takes a function, which no worker can be sent; use dipengine.restore.")
        own = checked_options(task, own, axes)
        sides = {name: own.pop(name) for name in file_options(task_named(task)) if own.get(name) is not None}
        request = Request(task, given(own), settings)
        request.check_options()
        return request, sides

    def map(self, images: Iterable[Any], task: str = "denoise", **options: Any) -> Iterator[Future]:
        """Restore all images by the same options; yields their futures in the order of completion, each with its `index`.

        images: taken one by one, no faster than they are worked on. Options as of `submit`; an image that fails, or is none, raises
        from its future's `result()` alone.
        """
        own = {name: value for name, value in options.items() if name not in _OF_SUBMIT}
        self._request(task, options.get("axes"), own)
        pending: set[Future] = set()
        for index, image in enumerate(images):
            try:
                future = self.submit(image, task, **options)
            except InputError as error:
                future = Future()
                future.set_exception(error)
            future.index = index
            pending.add(future)
            room = self._queue + self._at_once - len(pending)
            done, pending = wait(pending, timeout=0 if room > 0 else None, return_when=FIRST_COMPLETED)
            yield from sorted(done, key=lambda future: future.index)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from sorted(done, key=lambda future: future.index)

    def close(self, *, finish: bool = True) -> None:
        """Wait for all that was submitted, or (finish=False) give it up: its futures raise. The workers end."""
        with self._changed:
            self._closing = "finish" if finish and self._closing is None else self._closing or "now"
            if not finish:
                self._closing = "now"
            self._changed.notify_all()
        if threading.current_thread() is self._settling:
            return  # a future's callback: the threads end when it has returned
        self._thread.join()
        self._settling.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self.close(finish=kind is None)

    @property
    def _at_once(self) -> int:
        return sum(device.limit for device in self._driver.devices)

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closing:
            raise DipEngineError("The engine is closed; make another one.")

    # ---- the driver's thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._goes_on():
                self._driver.step(_LOOK)
            self._driver.stop(0 if self._closing == "now" else 10)
        except BaseException as error:  # noqa: BLE001  (futures must not hang, whatever it is)
            self._error = error if isinstance(error, DipEngineError) else FitError(f"The engine failed: {error!r}.")
            self._driver.stop(0)
        finally:
            with self._changed:
                self._closing = self._closing or "now"
                self._enter()
                asked = list(self._asked.values())
                self._asked.clear()
                self._changed.notify_all()
            error = self._error or DipEngineError("The engine was closed before this image was done.")
            for one in asked:
                self._settled.put(partial(one.future.set_exception, error))
            self._settled.put(None)
            self._ledger.close()

    def _settle_all(self) -> None:
        while (settle := self._settled.get()) is not None:
            settle()

    def _goes_on(self) -> bool:
        with self._changed:
            self._enter()
            if self._closing == "now":
                return False
            if self._driver.halted is not None:
                raise DipEngineError(self._driver.halted)
            if self._unfinished == 0:
                if self._closing:
                    return False
                self._changed.wait(_LOOK)
        return True

    def _enter(self) -> None:
        if not self._inbox:
            return
        jobs, self._inbox = list(self._inbox), deque()
        try:
            with self._ledger.transaction():
                rows = [row for row, _ in self._ledger.enter(job for job, _ in jobs)]
        except Exception:
            self._asked |= {-number: asked for number, (_, asked) in enumerate(jobs, 1)}  # so that they are told
            raise
        for row, (_, asked) in zip(rows, jobs):
            self._asked[row.id] = asked
            self._driver.add(row, asked.more.get("image"))

    def done(self, row: Row, message: Done) -> None:
        self._settled.put(partial(self._deliver, self._settle(row), message.value))

    def _deliver(self, asked: _Asked, restored: Any) -> None:
        pixels = with_alpha(restored.pixels, restored.alpha) if asked.alpha else restored.pixels
        try:
            asked.future.set_result(Result(asked.back(pixels), restored.history, restored.generator, restored.record))
        except Exception as error:  # noqa: BLE001  (of the caller's library)
            asked.future.set_exception(error)

    def failed(self, row: Row, error: str, cause: BaseException | None) -> None:
        exception = cause if isinstance(cause, DipEngineError) else FitError(error)
        self._settled.put(partial(self._settle(row).future.set_exception, exception))

    def _settle(self, row: Row) -> _Asked:
        with self._ledger.transaction():
            self._ledger.forget(row)
        with self._changed:
            self._unfinished -= 1
            self._changed.notify_all()
            return self._asked.pop(row.id)


