"""The driver: one step() is schedule, run, postprocess. It alone writes the ledger and puts outputs in their places.

A job: waiting -> planned by a worker (its image read, its bytes known) -> running, once its device has room -> done or failed. An
image in tiles: waiting -> its plan of tiles is made -> every tile a job of its own -> blended. What a step decides is written to the
ledger in one transaction before anybody is told.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from dipengine.images import Image
from dipengine.images.atomic import nobody_can_write
from dipengine.scheduling.backlog import Backlog
from dipengine.scheduling.canvases import Canvases
from dipengine.scheduling.environments import same_place, with_precision, with_tiling
from dipengine.scheduling.facts import facts_json, seen_facts
from dipengine.scheduling.ledger import Ledger, Row
from dipengine.scheduling.messages import Died, Done, Drop, Failed, Go, Noted, Planned, Progressed, Ready, Start, Threads, Tiled
from dipengine.scheduling.places import Places
from dipengine.scheduling.pool import DevicePlan, Executor, Executors


class Listener(Protocol):
    """Who is told what became of jobs, after the ledger knows."""

    def done(self, row: Row, message: Done) -> None: ...

    def failed(self, row: Row, error: str, cause: BaseException | None) -> None: ...


@dataclass(slots=True)
class Parent:
    """An image whose tiles are under way."""

    row: Row
    total: int
    pending: set[int]  # tiles
    seconds: float  # of fitting, so far


@dataclass(slots=True)
class Held:
    """A job that a worker has."""

    row: Row
    executor: Executor
    bytes: int = 0
    admitted: bool = False
    iteration: int = 0
    ceiling: int = 0


class Device:
    """What the fits of one device hold together."""

    def __init__(self, plan: DevicePlan) -> None:
        self.plan = plan
        self.limit = plan.workers * plan.slots  # jobs at once; halved when memory runs out all the same
        self.executors: list[Executor] = []
        self.held = 0
        self.used = 0
        self.running = 0
        self.deferred: deque[Held] = deque()  # planned, waiting for memory
        self.threads = max(1, plan.threads // plan.workers)  # of each worker, as last told

    def has_room_for(self, needed: int) -> bool:
        """A job that is alone is always tried: it may be refused by its own check of the machine's memory."""
        budget = self.plan.budget
        return self.running == 0 or (self.running < self.limit and (budget is None or self.used + needed <= budget))


class Driver:
    """Takes rows of the ledger through executors."""

    def __init__(
        self,
        ledger: Ledger,
        executors: Executors,
        listener: Listener,
        *,
        places: Places | None = None,
        retries: int = 2,
        start: Callable[[Row], dict[str, Any]] | None = None,
    ) -> None:
        """places: None where results come back instead of being written. retries: of accidents, each job, each run.

        start: further fields of a job's Start message.
        """
        self._ledger = ledger
        self._pool = executors
        self._listener = listener
        self._places = places
        self._retries = retries
        self._more = start or (lambda row: {})
        self._backlog = Backlog()
        self._devices = {plan.name: Device(plan) for plan in executors.devices}
        self._executors = executors.start()
        for executor in self._executors:
            self._devices[executor.device].executors.append(executor)
        self._held: dict[Executor, dict[int, Held]] = {executor: {} for executor in self._executors}
        self._environments: dict[Executor, str] = {}  # of workers that are there, JSON
        self._parents: dict[int, Parent] = {}
        self._tiles = 0  # so far, of all images: their rows are numbered below zero
        self._accidents: defaultdict[int, int] = defaultdict(int)
        self._writes: list[Callable[[], None]] = []
        self._said: list[Callable[[], None]] = []
        # Only where a worker has several slots is it worth a look at every image's header.
        self._canvases = Canvases() if any(plan.slots > 1 for plan in executors.devices) else None
        self.halted: str | None = None  # why nothing can go on

    # ---- from outside -------------------------------------------------------------------------------------------

    def add(self, row: Row, image: Image | None = None) -> None:
        """Queue a job that is in the ledger as queued. image: where it is in no file."""
        if self._canvases is not None and row.canvas is None:
            row.canvas = self._canvases.of(row.job.request, image or row.job.input)
        self._backlog.put(row)

    @property
    def devices(self) -> list[Device]:
        return list(self._devices.values())

    @property
    def waiting(self) -> int:
        return len(self._backlog)

    @property
    def held(self) -> int:
        return sum(len(jobs) for jobs in self._held.values())

    @property
    def idle(self) -> bool:
        """Nothing is left to be done, or can be."""
        return (self.waiting == 0 or self.halted is not None) and self.held == 0

    def progress(self) -> float:
        """Of the jobs under way, in jobs."""
        found = sum(1 - len(parent.pending) / parent.total for parent in self._parents.values())
        for jobs in self._held.values():
            for held in jobs.values():
                if held.ceiling and held.row.stage != "blend":
                    parent = self._parents.get(held.row.order) if held.row.parent is not None else None
                    found += held.iteration / held.ceiling / (parent.total if parent else 1)
        return found

    def step(self, timeout: float | None = None) -> None:
        """Hear what the workers say, decide what comes next, write it down, say it."""
        for executor, message in self._pool.events(timeout):
            self._hear(executor, message)
        orders = self._schedule()
        if self._writes:
            with self._ledger.transaction():
                for write in self._writes:
                    write()
            self._writes = []
        for executor, message in orders:
            executor.send(message)
        self._tell()

    def _tell(self) -> None:
        said, self._said = self._said, []
        for say in said:
            say()

    def stop(self, patience: float) -> None:
        """Ctrl-C: workers write checkpoints and leave; their jobs wait in the ledger. What has been done by then is done."""
        for executor, message in self._pool.close(patience):
            if isinstance(message, (Done, Failed)):
                self._hear(executor, message)
        rows = {held.row.id: held.row for jobs in self._held.values() for held in jobs.values() if held.row.parent is None}
        rows |= {number: parent.row for number, parent in self._parents.items()}
        with self._ledger.transaction():
            for write in self._writes:
                write()
            for row in rows.values():
                self._ledger.back(row)
        self._writes = []
        self._tell()
        self._parents = {}
        self._held = {executor: {} for executor in self._executors}

    # ---- hearing ------------------------------------------------------------------------------------------------

    def _hear(self, executor: Executor, message: Any) -> None:
        if isinstance(message, Noted):
            held = self._held[executor].get(message.job)
            if held is not None and held.row.parent is None:
                row = held.row
                self._writes.append(lambda: self._ledger.note(row, message.note))
            return
        if isinstance(message, Ready):
            self._environments[executor] = json.dumps(message.environment, sort_keys=True)
            executor.send(Threads(self._devices[executor.device].threads))
            return
        if isinstance(message, Died):
            self._environments.pop(executor, None)
            for held in list(self._held[executor].values()):
                if held.row.id not in self._held[executor]:
                    continue  # a tile that went with its image
                self._release(held)
                if message.memory and self._fewer_slots(executor.device):
                    self._again(held.row, message.reason)
                else:
                    self._accident(held.row, message.reason, None)
            return
        held = self._held[executor].get(message.job)
        if held is None or held.row.attempts != message.attempt:
            return  # of an attempt that was given up
        if isinstance(message, Planned):
            held.bytes, held.ceiling = message.bytes, message.iterations
            plan = self._devices[executor.device].plan
            if plan.limited and message.bytes > plan.budget and held.row.stage != "blend":
                self._release(held)
                executor.send(Drop(held.row.id))
                self._give_up(held.row, f"It needs {message.bytes / 1e6:.0f} MB and the limit of memory is {plan.budget / 1e6:.0f}; "
                              f"raise --limit-memory, or give smaller tiles with --tile.", None, keep=False)
                return
            self._devices[executor.device].deferred.append(held)
            if held.row.stage == "image":
                self._planned(held.row, "none")
        elif isinstance(message, Tiled):
            self._release(held)
            self._planned(held.row, message.tiling)
            self._in_tiles(held.row, message)
        elif isinstance(message, Progressed):
            held.iteration = message.iteration
        elif isinstance(message, Done):
            self._release(held)
            self._done(held, message)
        elif isinstance(message, Failed):
            self._release(held)
            self._failed(held, message)

    def _planned(self, row: Row, tiling: str) -> None:
        """The first plan of a job decides how its values come about; another machine's memory may ask for other tiles.

        That is written with whatever comes of the job: a commit of its own would be an fsync for each.
        """
        row.environment, begun = with_tiling(row.environment, tiling)
        if begun != tiling:
            note = f"begun with tiles: {begun}, so the values differ: now {tiling}"
            self._writes.append(lambda: self._ledger.note(row, note))

    def _in_tiles(self, row: Row, message: Tiled) -> None:
        self._parents[row.id] = Parent(row, max(1, message.total), set(message.pending), message.seconds)
        for tile in message.pending:
            self._tiles += 1
            # Attempts go on where those of earlier engines cannot have been.
            # They are of one canvas, whatever it is.
            self._backlog.put(Row(
                -self._tiles, row.job, "queued", 100 * row.attempts, canvas=("tiles", row.id), stage="tile", parent=row, tile=tile
            ))
        self._blend_if_complete(row)

    def _tile_done(self, row: Row, seconds: float) -> None:
        parent = self._parents.get(row.parent.id)
        if parent is not None:
            parent.pending.discard(row.tile)
            parent.seconds += seconds
            self._places.forget(row.name)
            self._accidents.pop(row.id, None)
            self._blend_if_complete(parent.row)

    def _blend_if_complete(self, row: Row) -> None:
        if not self._parents[row.id].pending:
            row.stage = "blend"
            self._backlog.put(row)

    def _done(self, held: Held, message: Done) -> None:
        row = held.row
        if row.parent is not None:
            self._tile_done(row, message.result.get("seconds", 0.0))
            return
        if self._places is not None:
            try:
                self._places.publish(row.name, message.attempt, message.staged)
            except OSError as error:
                self._unpublished(row, error)
                return
        self._writes.append(lambda: self._ledger.done(row, list(message.files), message.result))
        self._said.append(lambda: self._settled(row, lambda: self._listener.done(row, message)))

    def _unpublished(self, row: Row, error: OSError) -> None:
        text = f"{row.job.output} cannot be put in its place ({error.strerror or error})"
        if nobody_can_write(error):
            self.halted = f"{text}; free some space."
            self._again(row, text)
        else:
            self._accident(row, text, error)

    def _failed(self, held: Held, message: Failed) -> None:
        row = held.row
        if message.kind == "memory" and self._fewer_slots(held.executor.device):
            self._again(row, message.error)
        elif message.kind == "disk":
            self.halted = message.error
            self._again(row, message.error)
        elif message.kind == "accident":
            self._accident(row, message.error, message.cause)
        else:
            self._give_up(row, message.error, message.cause, keep=message.kind == "time")

    def _fewer_slots(self, name: str) -> bool:
        """Memory ran out: halve what runs at once on the device; False where nothing else ran there."""
        device = self._devices[name]
        if device.held == 0:
            return False
        device.limit = max(1, min(device.limit, device.held + 1) // 2)
        return True

    def _accident(self, row: Row, error: str, cause: BaseException | None) -> None:
        self._accidents[row.id] += 1
        tries = self._accidents[row.id]
        if tries <= self._retries:
            self._again(row, error)
        else:
            times = "once" if tries == 1 else f"{tries} times"
            self._give_up(row, f"Tried {times}: {error}", cause, keep=False)

    def _again(self, row: Row, error: str) -> None:
        if self._places is not None:
            self._places.discard(row.name, row.attempts)
        if row.parent is None and row.stage != "blend":
            self._writes.append(lambda: self._ledger.back(row, error))
        self._backlog.put(row)

    def _give_up(self, row: Row, error: str, cause: BaseException | None, *, keep: bool) -> None:
        if row.parent is not None:
            if row.parent.id not in self._parents:
                return  # another tile has failed before it
            tile, row = row.tile, row.parent
            error = f"Tile {tile}: {error}"
            self._drop_tiles(row)
        if self._places is not None:
            self._places.discard(row.name, row.attempts)
        self._writes.append(lambda: self._ledger.failed(row, error))
        self._said.append(lambda: self._settled(row, lambda: self._listener.failed(row, error, cause), keep=keep))

    def _drop_tiles(self, row: Row) -> None:
        """One tile has failed: the others are of no use. Those that wait are passed over, see `_next`."""
        del self._parents[row.id]
        for executor, jobs in self._held.items():
            for held in [held for held in jobs.values() if held.row.parent is row]:
                self._release(held)
                executor.send(Drop(held.row.id))

    def _settled(self, row: Row, tell: Callable[[], None], *, keep: bool = False) -> None:
        self._parents.pop(row.id, None)
        if self._places is not None and not keep:
            self._places.forget(row.name)
        self._accidents.pop(row.id, None)
        tell()

    def _release(self, held: Held) -> None:
        device = self._devices[held.executor.device]
        del self._held[held.executor][held.row.id]
        device.held -= 1
        if held.admitted:
            device.used -= held.bytes
            device.running -= 1
        elif held in device.deferred:
            device.deferred.remove(held)

    # ---- deciding -----------------------------------------------------------------------------------------------

    def _schedule(self) -> list[tuple[Executor, Any]]:
        orders: list[tuple[Executor, Any]] = []
        for device in self._devices.values():
            while device.deferred and device.has_room_for(device.deferred[0].bytes):
                held = device.deferred.popleft()
                held.admitted = True
                device.used += held.bytes
                device.running += 1
                orders.append((held.executor, Go(held.row.id)))
        if self.halted is None:
            orders += self._assign()
        return self._share_threads() + orders

    def _assign(self) -> list[tuple[Executor, Any]]:
        orders = []
        for device in self._devices.values():
            for executor in device.executors:
                if not self._backlog or device.held >= device.limit:
                    break
                environment, jobs = self._environments.get(executor), self._held[executor]
                while environment is not None and self._backlog and self._takes_more(device, executor, jobs):
                    canvas = next((held.row.canvas for held in jobs.values()), None)
                    row = self._next(canvas)
                    if row is None:
                        break
                    if jobs and row.id in self._accidents:
                        self._backlog.put(row)
                        break
                    orders.append((executor, self._start(row, executor, environment)))
        return orders

    def _next(self, canvas: object) -> Row | None:
        row = self._backlog.take(canvas)
        while row is not None and row.parent is not None and row.parent.id not in self._parents:
            row = self._backlog.take(canvas)  # a tile of an image that has failed
        return row

    def _takes_more(self, device: Device, executor: Executor, jobs: dict[int, Held]) -> bool:
        # A job with an accident behind it has a worker to itself, so that the next one is no other image's.
        alone = any(number in self._accidents for number in jobs)
        return device.held < device.limit and len(jobs) < executor.slots and not alone

    def _start(self, row: Row, executor: Executor, environment: str) -> Start:
        here = with_precision(environment, row.job.request.settings.precision)
        note = None
        if row.environment is not None and not same_place(row.environment, here):
            note = f"begun elsewhere ({row.environment}), so the bits may differ from those of one machine: now {here}"
        # A plan of tiles, their fits and the blending are one attempt of the image.
        attempt = row.attempts + (row.stage != "blend")
        self._held[executor][row.id] = Held(row, executor)
        self._devices[executor.device].held += 1
        # Now, not with the write: what the worker answers is compared with it.
        row.state, row.attempts = "running", attempt
        if row.stage == "image":
            if self._places is not None:
                row.seen = facts_json(seen_facts([row.job.input, *row.job.request.side_files()]))
            self._writes.append(lambda: self._ledger.started(row, here, note))
        files: dict[str, Any] = {"output": None, "staging": None, "checkpoint": None, "resume": None}
        if self._places is not None:
            files = {
                "output": row.job.output,
                "staging": self._places.staging(row.name, attempt),
                "resume": self._places.latest(row.name),
                "checkpoint": self._places.checkpoint(row.name, attempt),
                "tiles": self._places.tiles(str(row.order)),
            }
        more = self._more(row)
        if row.parent is not None:
            more = {**more, "spent": self._parents[row.parent.id].seconds}
        return Start(row.id, attempt, row.job.input, row.job.request, **files, stage=row.stage, tile=row.tile, **more)

    def _share_threads(self) -> list[tuple[Executor, Any]]:
        """Cores that no job waits for go to the fits that run: their bits do not depend on it."""
        orders: list[tuple[Executor, Any]] = []
        for device in self._devices.values():
            if device.plan.workers == 1:
                continue
            busy = device.limit
            if device.deferred or not self._backlog:
                busy = device.held - len(device.deferred)  # nobody else can come: for want of memory, or of jobs
            workers = min(device.plan.workers, max(1, busy))
            threads = max(1, device.plan.threads // workers)
            if threads != device.threads:
                orders += [(executor, Threads(threads)) for executor in device.executors]
            device.threads = threads
        return orders
