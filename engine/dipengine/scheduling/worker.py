"""A worker: a process that fits images on one device and tells the driver. Started by `pool.py`, ends with its driver.

The main thread runs fits, some iterations of each in turn; a second thread listens, and ends the process when the driver is gone.
Nothing outside the staging and checkpoint folders is written here: outputs take their place by the driver's hand.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from dipengine.scheduling.messages import Alive, Drop, Failed, Go, Noted, Planned, Progressed, Ready, Start, Stop, Threads, Tiled

_TURN = 0.25  # seconds of iterations between looks at the messages, about
ALIVE = 5.0  # seconds between two signs of life


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker is told when it is started."""

    device: str = "cpu"
    threads: int = 1
    checkpoint_every: float = 60.0
    limit_time: float | None = None  # seconds of iterations, of one fit
    slots: int = 1  # fits at once
    budget: int | None = None  # bytes that one fit may hold; images that need more are restored in tiles


class Worker:
    """Takes messages, runs fits, answers."""

    def __init__(self, connection: Connection, options: WorkerOptions) -> None:
        self._connection = connection
        self._options = options
        self._threads = options.threads
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()
        self._cohorts: Any = None  # with the first image: its imports take a moment
        self._planned: dict[int, Any] = {}
        self._waiting: dict[int, Any] = {}  # for others to leave
        self._running: dict[int, Any] = {}
        self._leaving = False
        self.spent = False  # its device has failed: nothing works in this process any more
        self._sending = threading.Lock()

    def run(self) -> None:
        """Until told to stop, or the device has failed (`spent`)."""
        for task in (self._listen, self._live):
            threading.Thread(target=task, daemon=True).start()
        self._options = replace(self._options, budget=self._options.budget or _budget_of(self._options.device))
        self._send(Ready(environment_of(self._options.device)))
        self._take_messages()
        while not self._leaving:
            self._turns()
            for number in list(self._waiting):
                self._begin(self._waiting.pop(number))
            self._take_messages()
        if self.spent:  # a new process takes its place, and the images that are left from their checkpoints
            return
        for work in list(self._running.values()):
            self._guarded(work.start, work.save)

    def _listen(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                os._exit(1)  # the driver is gone: nobody would take what comes
            self._inbox.put(message)

    def _live(self) -> None:
        while True:
            time.sleep(ALIVE)
            try:
                self._send(Alive())
            except OSError:
                return

    def _send(self, message: Any) -> None:
        with self._sending:
            self._connection.send(message)

    def _take_messages(self) -> None:
        """Waits where there is nothing to run."""
        while not self._leaving:
            try:
                self._take(self._inbox.get(block=not (self._running or self._waiting)))
            except queue.Empty:
                return

    def _take(self, message: Any) -> None:
        if isinstance(message, Start):
            self._guarded(message, self._plan, message)
        elif isinstance(message, Go):
            work = self._planned.pop(message.job, None)
            if work is not None:
                self._begin(work)
        elif isinstance(message, Drop):
            self._leave(message.job)
        elif isinstance(message, Threads):
            self._threads = message.count
            for work in list(self._running.values()):
                self._guarded(work.start, work.set_threads, message.count)
        elif isinstance(message, Stop):
            self._leaving = True

    def _plan(self, start: Start) -> None:
        from dipengine.scheduling.cohorts import Cohorts
        from dipengine.scheduling.work import work_of

        if self._cohorts is None:
            self._cohorts = Cohorts(self._options.slots, self._options.budget)
        work = work_of(start, self._options, self._threads, self._cohorts)
        if isinstance(work, Tiled):
            self._send(work)
            return
        self._planned[start.job] = work
        self._send(Planned(start.job, start.attempt, work.bytes, work.iterations))

    def _begin(self, work: Any) -> None:
        def begin() -> None:
            begun = work.begin(self._threads)
            (self._running if begun else self._waiting)[work.start.job] = work
            if begun and work.remark:
                self._send(Noted(work.start.job, work.remark))

        self._guarded(work.start, begin, work=work)

    def _turns(self) -> None:
        groups: dict[Any, list[Any]] = {}
        for work in self._running.values():
            groups.setdefault(work.cohort or work, []).append(work)
        for cohort, works in groups.items():
            if len(works) == 1:
                self._guarded(works[0].start, works[0].turn, _TURN)
            else:
                self._together(cohort, works)
            for work in works:
                if work.start.job in self._running:
                    self._guarded(work.start, self._settle, work)

    def _together(self, cohort: Any, works: list[Any]) -> None:
        from dipengine.scheduling.work import turn_together

        try:
            failed = turn_together(cohort, works, _TURN)
        except Exception as error:  # noqa: BLE001  (as in _guarded)
            failed = dict.fromkeys(works, error)
        for work, error in failed.items():
            self._fail(work.start, error)

    def _settle(self, work: Any) -> None:
        start = work.start
        if not work.settled():
            self._send(Progressed(start.job, start.attempt, work.iteration))
            return
        done = work.finish()
        self._leave(start.job)
        self._send(done)

    def _leave(self, number: int) -> None:
        for works in (self._planned, self._waiting, self._running):
            work = works.pop(number, None)
            if work is not None:
                work.close()

    def _fail(self, start: Start, error: Exception) -> None:
        self._leave(start.job)
        self._send(failure_of(start, error))
        if device_failed(error):
            self._leaving = self.spent = True

    def _guarded(self, start: Start, action: Any, *arguments: Any, work: Any = None) -> None:
        """One image's failure is that image's alone. work: that is in none of the lists."""
        try:
            action(*arguments)
        except Exception as error:  # noqa: BLE001  (whatever a library throws at a strange file)
            if work is not None:
                work.close()
            self._fail(start, error)


def device_failed(error: BaseException) -> bool:
    """Whether the process has lost its device, by the core's word or PyTorch's."""
    from dipengine.errors import DeviceFailed

    return isinstance(error, DeviceFailed) or "CUDA error" in str(error)


def failure_of(start: Start, error: Exception) -> Failed:
    """What went wrong in one sentence, and whether another attempt makes sense."""
    from dipengine.errors import DipEngineError, FormatError, OutOfMemory, OutputError
    from dipengine.images.atomic import name_too_long, nobody_can_write
    from dipengine.scheduling.work import TimeLimit

    # Others' exceptions may not survive the way to the driver.
    ours = isinstance(error, DipEngineError)
    text, kind = str(error) if ours else f"{type(error).__name__}: {error}", "accident"
    if nobody_can_write(error):
        kind = "disk"
    elif isinstance(error, (MemoryError, OutOfMemory)):
        text, kind = str(error) or "The memory is used up.", "memory"
    elif isinstance(error, TimeLimit):
        kind = "time"
    elif isinstance(error, FormatError) or name_too_long(error) or (
        ours and not isinstance(error, OutputError) and not device_failed(error)
    ):
        kind = "final"  # the same again would come to the same
    return Failed(start.job, start.attempt, text, kind, error if ours else None)


def _budget_of(device: str) -> int | None:
    """Bytes that the fits of a GPU may hold, where nobody has said; None for the CPU, and where nobody can tell."""
    if device == "cpu":
        return None
    from dipengine.fitting.device import cuda_memory
    from dipengine.scheduling.devices import SHARE

    there = cuda_memory(device)
    return None if there is None else int(SHARE * there)


def environment_of(device: str) -> dict[str, Any]:
    """What the bits of a fit depend on besides its request."""
    from dipengine.fitting.identity import engine_build
    from dipengine.kernels import backend

    told = {"device": device}
    if device != "cpu":
        from dipengine.fitting.device import cuda_name
        from dipengine.fitting.on_device import library

        # Whose functions work out what the fit is given decides last bits, too.
        told = {"device": cuda_name(device), "arrays": library(device)}
    return {
        **told,
        "instruction_set": backend.instruction_set(),
        "bf16": bool(backend.bfloat16_pays()),
        "build": engine_build(),
    }


def main() -> int:
    """Entry of the process: the number of an inherited pipe, and the options as JSON."""
    import json

    connection = Connection(int(sys.argv[1]))
    options = WorkerOptions(**json.loads(sys.argv[2]))
    worker = Worker(connection, options)
    try:
        worker.run()
    except (BrokenPipeError, ConnectionResetError):
        return 1  # the driver is gone
    if worker.spent:
        print("its device failed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
