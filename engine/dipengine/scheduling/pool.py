"""The processes that fit: started, listened to, replaced when they die, ended with their driver."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from dipengine.errors import DeviceError
from dipengine.scheduling.messages import Alive, Died, Ready, Stop
from dipengine.scheduling.worker import ALIVE, WorkerOptions

_START_FAILURES = 3  # of one worker in a row, before it is no accident any more
_SILENCE = 24 * ALIVE  # seconds without a word, before a worker counts as hanging


@dataclass(frozen=True)
class DevicePlan:
    """What a device is given: so many workers, each with so many slots, and memory for all of its fits together."""

    name: str  # "cpu" or "cuda:N"
    workers: int
    slots: int  # of one worker
    budget: int | None  # bytes; None: unknown, everything is tried
    threads: int  # CPU threads of all workers together
    limited: bool = False  # the budget was asked for: what needs more is not tried


class Executor(Protocol):
    """One worker as the driver sees it; simulated ones run the driver at scale (bench/scheduler.py)."""

    device: str
    slots: int

    def send(self, message: Any) -> None: ...


class Executors(Protocol):
    """All workers of an engine."""

    devices: Sequence[DevicePlan]

    def start(self) -> list[Executor]: ...

    def events(self, timeout: float | None) -> Iterable[tuple[Executor, Any]]:
        """Wait until something is said, or the time is over."""

    def close(self, patience: float) -> Iterable[tuple[Executor, Any]]:
        """Tell all to stop; those that have not left after `patience` seconds are killed. What they said until then."""


class Process:
    """A worker process."""

    def __init__(self, options: WorkerOptions, slots: int) -> None:
        self.device = options.device
        self.slots = slots
        self._options = options
        self._failures = 0
        self._begin()

    def _begin(self) -> None:
        ours, theirs = socket.socketpair()
        self.ready = False
        self._errors = tempfile.TemporaryFile()
        self._killed_for_memory = _killed_for_memory()
        self._heard = time.monotonic()
        # A session of its own: Ctrl-C is the driver's to hear. -P: a queue.py beside the user's pictures is no module of ours.
        # PYTHONPATH: the package that the driver itself runs.
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dipengine.scheduling.worker", str(theirs.fileno()), json.dumps(asdict(self._options))],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._errors,
            start_new_session=True, env=os.environ | {"PYTHONPATH": paths},
        )
        theirs.close()
        self.connection = Connection(ours.detach())

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except OSError:
            pass  # it died: the next look at its pipe says so

    def kill(self) -> None:
        self._process.kill()

    @property
    def hangs(self) -> bool:
        """It said that it was there, and nothing more for long: stopped, or in the depths of an operating system."""
        return self.ready and time.monotonic() - self._heard > _SILENCE

    def said(self) -> Iterator[tuple[Executor, Any]]:
        """The next message, where it is more than a sign of life."""
        message = self._receive()
        if not isinstance(message, Alive):
            yield self, message

    def _receive(self) -> Any:
        """The next message; Died, and a new process, where there is none to come."""
        try:
            message = self.connection.recv()
        except Exception:  # noqa: BLE001  (a message cut off by the death of its writer unpickles to anything)
            return self._died()
        self._heard = time.monotonic()
        if isinstance(message, Ready):
            self.ready, self._failures = True, 0
        return message

    def _died(self) -> Died:
        self.connection.close()
        self._process.kill()
        status = self._process.wait()
        how = f"signal {-status}" if status < 0 else f"status {status}"
        said = self._last_words()
        if not self.ready:
            self._failures += 1
            if self._failures >= _START_FAILURES:
                raise DeviceError(f"The workers of {self.device} cannot be started ({how}): {said or 'they said nothing'}.")
        memory = status == -signal.SIGKILL and _killed_for_memory() > self._killed_for_memory
        self._begin()
        if memory:
            return Died("its worker was killed by the operating system because memory ran out", memory=True)
        return Died(f"its worker ended by {how}" + (f": {said}" if said else ""))

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read()[-4000:].decode(errors="replace").strip().splitlines()
        self._errors.close()
        return lines[-1].strip() if lines else ""

    def leave(self, patience: float) -> list[Any]:
        """Wait for the end of the process; then force it. What it said until then."""
        end, said = time.monotonic() + patience, []
        gone = False
        while not gone and time.monotonic() < end and not self.hangs:
            gone = self._process.poll() is not None  # then one more look at what it has left
            try:
                while self.connection.poll(0 if gone else 0.02):
                    said.append(self.connection.recv())
                    self._heard = time.monotonic()
            except Exception:  # noqa: BLE001  (cut off, or gone)
                time.sleep(0.01)
        self._process.kill()
        self._process.wait()
        self.connection.close()
        self._errors.close()
        return said


class Pool:
    """Worker processes on this machine's devices."""

    def __init__(self, devices: Sequence[DevicePlan], options: WorkerOptions) -> None:
        self.devices = list(devices)
        self._options = options
        self._workers: list[Process] = []

    def start(self) -> list[Executor]:
        for device in self.devices:
            options = replace(self._options, device=device.name, threads=max(1, device.threads // device.workers),
                              slots=device.slots, budget=device.budget)
            self._workers += [Process(options, device.slots) for _ in range(device.workers)]
        return list(self._workers)

    def events(self, timeout: float | None) -> Iterator[tuple[Executor, Any]]:
        by_connection = {worker.connection: worker for worker in self._workers}
        for connection in wait(list(by_connection), timeout):
            worker = by_connection[connection]
            yield from worker.said()
            while worker.connection is connection and not connection.closed and connection.poll():
                yield from worker.said()
        for worker in self._workers:
            if worker.hangs:
                worker.kill()  # its pipe ends, which the next look finds

    def close(self, patience: float) -> list[tuple[Executor, Any]]:
        end, said = time.monotonic() + patience, []
        for worker in self._workers:
            worker.send(Stop())
        try:
            for worker in self._workers:
                said += [(worker, message) for message in worker.leave(end - time.monotonic())]
        finally:
            for worker in self._workers:
                worker.kill()
        self._workers = []
        return said


def _killed_for_memory() -> int:
    """How many processes the system has killed so far because memory ran out."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0
