"""How far one driver reaches: the real step() and ledger (on a disk, fsynced) over simulated devices and a simulated clock.

    python bench/scheduler.py [--json bench/results/scheduler.json]

A device has slots whose fits do not slow each other down; a fit takes its number of iterations, heavy-tailed (log-normal, sigma 0.8,
as stops by themselves are), times the seconds of one. What the driver really takes for a step passes on the simulated clock, so that
devices wait for it as they would. Utilisation: busy slot seconds over all, from the first start until no job waits any more (the
last fits of a batch leave slots empty whatever the driver does).
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dipengine.bench.machine import facts
from dipengine.scheduling.driver import Driver
from dipengine.scheduling.jobs import Job, Request
from dipengine.scheduling.ledger import Ledger
from dipengine.scheduling.messages import Done, Go, Planned, Ready, Start
from dipengine.scheduling.pool import DevicePlan

MEAN_ITERATIONS = 1000


class SimulatedSlots:
    """One device's worker."""

    def __init__(self, pool: "SimulatedPool", device: str, slots: int) -> None:
        self.pool, self.device, self.slots = pool, device, slots
        self.started: dict[int, Start] = {}

    def send(self, message: Any) -> None:
        if isinstance(message, Start):
            self.started[message.job] = message
            self.pool.say(self.pool.read_seconds, self, Planned(message.job, message.attempt, 1, MEAN_ITERATIONS))
        elif isinstance(message, Go):
            start = self.started.pop(message.job)
            seconds = self.pool.fit_seconds[message.job]
            self.pool.busy += seconds
            self.pool.say(seconds, self, Done(start.job, start.attempt, (), (), {"seconds": seconds}))


class SimulatedPool:
    """Events in the order of a simulated clock, on which the driver's own time passes, too."""

    def __init__(self, devices: int, slots: int, fit_seconds: np.ndarray, read_seconds: float) -> None:
        self.devices = [DevicePlan(f"gpu:{i}", 1, slots, None, 1) for i in range(devices)]
        self.fit_seconds, self.read_seconds = fit_seconds, read_seconds
        self.now = self.busy = 0.0
        self.driver_seconds = 0.0
        self._left = time.perf_counter()
        self._events: list[tuple[float, int, SimulatedSlots, Any]] = []
        self._count = 0

    def start(self) -> list[SimulatedSlots]:
        executors = [SimulatedSlots(self, plan.name, plan.slots) for plan in self.devices]
        for executor in executors:
            self.say(0, executor, Ready({}))
        self._left = time.perf_counter()
        return executors

    def say(self, seconds: float, executor: SimulatedSlots, message: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, executor, message))

    def events(self, timeout: float | None) -> Iterator[tuple[SimulatedSlots, Any]]:
        spent = time.perf_counter() - self._left
        self.driver_seconds += spent
        self.now += spent
        if self._events:
            self.now = max(self.now, self._events[0][0])
        said = []
        while self._events and self._events[0][0] <= self.now:
            said.append(heapq.heappop(self._events)[2:])
        self._left = time.perf_counter()
        return iter(said)

    def close(self, patience: float) -> tuple:
        return ()


class Quiet:
    def done(self, row: Any, message: Any) -> None: ...

    def failed(self, row: Any, error: str, cause: Any) -> None:
        raise RuntimeError(error)


def simulate(devices: int, slots: int, iteration: float, jobs: int, folder: str, read: float = 0.0) -> dict[str, Any]:
    """One run; seconds of an iteration, of reading an image; jobs in all."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(0, 0.8, jobs + 1)
    seconds = lengths / lengths.mean() * MEAN_ITERATIONS * iteration
    ledger = Ledger(os.path.join(folder, f"{devices}.{slots}.{iteration}.sqlite"))
    pool = SimulatedPool(devices, slots, seconds, read)
    driver = Driver(ledger, pool, Quiet())
    request = Request()
    with ledger.transaction():
        for row, _ in ledger.enter(Job(f"/in/{i}.png", f"{i}.png", request) for i in range(jobs)):
            driver.add(row)
    pool._left = time.perf_counter()
    steps, longest = 0, 0.0
    used = end = None
    while not driver.idle:
        before = pool.driver_seconds
        driver.step()
        steps += 1
        longest = max(longest, pool.driver_seconds - before)
        if end is None and driver.waiting == 0:
            end = pool.now
            # What has been started and is not over counts up to here alone.
            used = pool.busy - sum(at - pool.now for at, _, _, message in pool._events if isinstance(message, Done))
    counts = ledger.counts()
    assert counts == {"done": jobs}, counts
    ledger.close()
    return {
        "devices": devices,
        "slots": slots,
        "iteration_ms": iteration * 1e3,
        "jobs": jobs,
        "jobs_a_second": jobs / pool.now,
        "utilisation": used / (end * devices * slots),
        "step_ms": 1e3 * pool.driver_seconds / steps,
        "driver_busy": pool.driver_seconds / pool.now,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", help="where the ledgers are written (default: the system's temporary folder)")
    parsed = parser.parse_args()
    rows = []
    print("| devices | slots | ms an iteration | jobs/s | utilisation | driver: ms a step | busy |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=parsed.folder) as folder:
        # 117 ms: 128x128, 128 channels, one core of an Emerald Rapids, measured. 2 ms: a fit of a cohort as `DESIGN.md` asks of an
        # H200 (4,000 iterations/s for 16 of 256x256, 4 ms each), and a quarter of that.
        for iteration in (0.117, 0.004, 0.001):
            for devices in (1, 8, 64, 256):
                slots = 16
                row = simulate(devices, slots, iteration, max(3 * devices * slots, 1000), folder)
                rows.append(row)
                print(f"| {devices} | {slots} | {row['iteration_ms']:.0f} | {row['jobs_a_second']:.1f} | {row['utilisation']:.1%} | "
                      f"{row['step_ms']:.2f} | {row['driver_busy']:.1%} |", flush=True)
    if parsed.json:
        parsed.json.write_text(json.dumps({"machine": facts(), "runs": rows}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
