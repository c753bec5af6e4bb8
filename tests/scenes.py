"""Executors that a test plays, and scenes of a driver with them: no process runs."""

from dipengine.scheduling.driver import Driver
from dipengine.scheduling.jobs import Job, Request
from dipengine.scheduling.ledger import Ledger
from dipengine.scheduling.messages import Done, Failed, Go, Planned, Ready, Start
from dipengine.scheduling.pool import DevicePlan

HERE = {"device": "cpu", "bf16": True}


class Played:
    """An executor: what it is sent is kept, what it says is put into the pool's list."""

    def __init__(self, pool, device, slots):
        self.pool, self.device, self.slots, self.sent = pool, device, slots, []

    def send(self, message):
        self.sent.append(message)

    def say(self, message):
        self.pool.said.append((self, message))

    def starts(self):
        return [message for message in self.sent if isinstance(message, Start)]

    def goes(self):
        return [message.job for message in self.sent if isinstance(message, Go)]


class PlayedPool:
    def __init__(self, *devices):
        self.devices, self.said, self.closed = devices, [], None

    def start(self):
        self.executors = [Played(self, d.name, d.slots) for d in self.devices for _ in range(d.workers)]
        return self.executors

    def events(self, timeout):
        said, self.said = self.said, []
        return said

    def close(self, patience):
        self.closed = patience
        said, self.said = self.said, []
        return said


class Scene:
    """Driver, ledger and executors, with short words for what happens."""

    def __init__(self, count=4, device=DevicePlan("cpu", 2, 1, 100, 4), priorities=(), retries=2, canvases=()):
        self.ledger = Ledger(None)
        self.pool = PlayedPool(device)
        self.ended = []
        self.driver = Driver(self.ledger, self.pool, self, retries=retries)
        priorities = list(priorities) + [0] * count
        jobs = [Job(f"/in/{i}.png", f"{i}.png", Request(), priorities[i]) for i in range(count)]
        with self.ledger.transaction():
            self.rows = [row for row, _ in self.ledger.enter(jobs)]
        for row, canvas in zip(self.rows, list(canvases) + [None] * count):
            row.canvas = canvas
            self.driver.add(row)
        self.workers = self.pool.executors

    def ready(self):
        for worker in self.workers:
            worker.say(Ready(HERE))
        self.driver.step()

    def plan(self, worker, needed=10, job=None):
        start = worker.starts()[-1] if job is None else next(s for s in reversed(worker.starts()) if s.job == job)
        worker.say(Planned(start.job, start.attempt, needed, 100))
        self.driver.step()
        return start

    def finish(self, worker, start=None):
        start = start or worker.starts()[-1]
        worker.say(Done(start.job, start.attempt, (), (), {"seconds": 1.0}, "value"))
        self.driver.step()

    def fail(self, worker, kind, error="It broke."):
        start = worker.starts()[-1]
        worker.say(Failed(start.job, start.attempt, error, kind))
        self.driver.step()

    def state(self, row):
        return next(line for line in self.ledger.rows() if line["id"] == row.id)

    def done(self, row, message):
        self.ended.append(("done", row.id))

    def failed(self, row, error, cause):
        self.ended.append(("failed", row.id, error))


class NoPlaces:
    """Where the driver would put files."""

    def __getattr__(self, name):
        return lambda *arguments: "x"
