"""A batch: many files, one ledger, one driver, one summary."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dipengine._version import __version__
from dipengine.errors import InputError
from dipengine.images.atomic import remove_leftovers, write_json
from dipengine.images.pages import file_and_page
from dipengine.scheduling.driver import Driver
from dipengine.scheduling.facts import FileFacts, facts_json, facts_of
from dipengine.scheduling.jobs import Job
from dipengine.scheduling.ledger import INPUT, Ledger, Row
from dipengine.scheduling.messages import Done
from dipengine.scheduling.places import Places
from dipengine.scheduling.pool import Executors
from dipengine.scheduling.series import Series

SUMMARY = "summary.json"
_PATIENCE = 3600  # seconds in which a worker may end its iteration and write a checkpoint
_LOOK = 0.2  # seconds between looks at the workers where nothing happens, so that progress shows


@dataclass
class Tally:
    """What a batch has come to."""

    total: int = 0
    already_done: int = 0
    done: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)  # (input, reason), of this run and those before
    changed: list[str] = field(default_factory=list)  # why jobs that were done are done again
    seconds: float = 0.0
    halted: str | None = None
    interrupted: bool = False

    @property
    def finished(self) -> int:
        return self.already_done + self.done + len(self.failed)


class Batch:
    """Jobs with their ledger, ready to be run."""

    def __init__(
        self,
        jobs: Iterable[Job],
        folder: str | os.PathLike,
        *,
        ledger: str | os.PathLike | None = None,
        resume: bool = True,
        retry_failed: bool = False,
    ) -> None:
        """Open the ledger, take over what it knows, queue the rest.

        folder: of the outputs. ledger: by default below it. resume: False does everything again. retry_failed: those that failed
        are tried again. Raises InputError and OutputError.
        """
        self.places = Places(folder)
        self.tally = Tally()
        self.ledger = Ledger(ledger or self.places.ledger)
        try:
            self.places.prepare()
            self._queued = self._take_over(jobs, resume, retry_failed)
        except BaseException:
            self.close()
            raise

    def _take_over(self, jobs: Iterable[Job], resume: bool, retry_failed: bool) -> list[Row]:
        rows = []
        with self.ledger.transaction():
            for row, changed in self.ledger.enter(jobs):
                rows.append(row)
                why = self._why_again(row, changed, resume, retry_failed)
                if why is not None:
                    self._again(row, *why)
                if row.state == "running":
                    self.ledger.back(row, "The engine ended while it ran.")
            self._series = Series(rows, self.places)
            for row, why in self._series.again():
                self._again(row, why, anew=False)
            for row in rows:
                if row.state == "done":
                    # An engine that was killed in between has left its checkpoint, and what it began with.
                    self.places.forget(row.name)
                    self._series.settled(row)
            failed = [(row.job.input, self.ledger.error(row)) for row in rows if row.state == "failed"]
        done = sum(row.state == "done" for row in rows)
        self.tally.total, self.tally.already_done, self.tally.failed = len(rows), done, failed
        return [row for row in rows if row.state == "queued"]

    def _again(self, row: Row, why: str, anew: bool) -> None:
        if row.state == "done":
            self.tally.changed.append(f"{row.job.input}: {why}")
        if row.state == "done" or anew:
            self.places.forget(row.name)
        self.ledger.requeue(row, why, anew=anew)

    def _why_again(self, row: Row, changed: str, resume: bool, retry_failed: bool) -> tuple[str, bool] | None:
        """The reason to queue a job that is in the ledger already, and whether it is another job now; None leaves it as it is."""
        if row.attempts == 0 and not changed:
            return None
        if not resume:
            return "asked to do all again", True
        if changed == INPUT and row.state == "done" and self._moved(row):
            changed = ""
        if changed:
            return changed, True
        if row.state in ("done", "failed") and (touched := self._changed_file(row)) is not None:
            return touched, True
        if row.state == "failed" and retry_failed:
            return "", False
        if row.state == "done" and not (self.places.folder / row.job.output).exists():
            return "its output is gone", False
        return None

    def _moved(self, row: Row) -> bool:
        """Whether the input that a job has now is the one that it had, in another place: the ledger is told so."""
        files = [FileFacts(*values) for values in json.loads(row.files or "[]")]
        try:
            now = facts_of(row.job.input)
        except InputError:
            return False
        pages = [file_and_page(place)[1] for place in (row.job.input, *(file.path for file in files[:1]))]
        if not files or now.sha256 != files[0].sha256 or pages[0] != pages[1]:
            return False
        self.ledger.moved(row, facts_json([now, *files[1:]]))
        return True

    def _changed_file(self, row: Row) -> str | None:
        """Sizes and times first; where these differ, digests."""
        files = [FileFacts(*values) for values in json.loads(row.files or "[]")]
        touched = False
        for place, old in enumerate(files):
            try:
                status = os.stat(file_and_page(old.path)[0])
            except OSError:
                continue  # what was restored stays restored when its input is cleared away
            if (status.st_size, status.st_mtime_ns) == (old.size, old.modified_ns):
                continue
            if not old.sha256:
                return f"{old.path} has changed"  # nobody has read it to its end
            try:
                new = facts_of(old.path)
            except InputError:
                continue  # nor may whoever runs this now read it
            if new.sha256 != old.sha256:
                return f"{old.path} has changed"
            files[place], touched = new, True
        if touched:
            self.ledger.set_files(row, facts_json(files))
        return None

    # ---- running ------------------------------------------------------------------------------------------------

    def run(
        self, executors: Executors, *, retries: int = 2, progress: Callable[[Tally, float], bool | None] | None = None
    ) -> Tally:
        """All that is queued. progress: told the tally, and the jobs under way in jobs, some times a second.

        Where it returns True the workers write checkpoints and leave, and the run ends (`tally.interrupted`). A KeyboardInterrupt
        ends it at once; nothing that was done is lost, and what ran goes on from its last checkpoint the next time.
        """
        tally, begin = self.tally, time.monotonic()
        driver = None
        try:
            if self._queued:
                driver = Driver(
                    self.ledger, executors, self, places=self.places, retries=retries, start=self._series.start
                )
                self._add = driver.add
            for row in self._queued:
                if self._series.ready(row):
                    driver.add(row)
            while driver is not None and not driver.idle and not tally.interrupted:
                driver.step(_LOOK)
                asked_to_end = progress is not None and bool(progress(tally, driver.progress()))
                tally.interrupted = asked_to_end and not driver.idle
            if driver is not None:
                driver.stop(_PATIENCE)
                tally.halted = driver.halted
        except BaseException:
            if driver is not None:
                driver.stop(0)
            raise
        finally:
            tally.seconds = time.monotonic() - begin
        return tally

    def done(self, row: Row, message: Done) -> None:
        self.tally.done += 1
        self._series.settled(row)
        self._next(row)

    def failed(self, row: Row, error: str, cause: BaseException | None) -> None:
        self.tally.failed.append((row.job.input, error))
        self._next(row)

    def _next(self, row: Row) -> None:
        behind = self._series.behind(row)
        if behind is not None:
            self._add(behind)

    def summary(self) -> dict[str, Any]:
        """The batch as one JSON object: counts, and a line a job from the ledger."""
        names = ("input", "output", "state", "attempts", "error", "note", "seconds")
        jobs = []
        for row in self.ledger.rows():
            result = json.loads(row["result"]) if row["result"] else {}
            files = json.loads(row["files"]) if row["files"] else []
            jobs.append({**{name: row[name] for name in names}, **result, "sha256": files[0][3] or None if files else None})
        return {"format": 1, "version": __version__, "counts": self.ledger.counts(), "jobs": jobs}

    def write_summary(self) -> Path:
        path = self.places.folder / SUMMARY
        remove_leftovers(path)
        write_json(path, self.summary())
        return path

    def close(self) -> None:
        self.places.leave()
        self.ledger.close()
