"""The ledger: what became of every job, in one SQLite file that survives any crash. The driver alone writes it.

| column of `jobs` | what |
|---|---|
| input, output | absolute path; path below the batch's folder (unique) |
| request, parameters | what is asked, as JSON; its digest with those of mask, kernel, guide and truth left to `files` |
| state | queued, running, done, failed |
| attempts, error | starts so far; why the last one failed |
| queued_at, started_at, finished_at, seconds | Unix times; of the fit alone |
| files | JSON [[path, size, modified_ns, sha256], ...] of the image and the files beside it, as they were when it was done; of jobs that failed without the digests |
| environment, note | JSON of what the bits depend on, fixed at the first start; what was different in a later one, and why it was done again |
| after | output of the job whose weights it begins with (frames in order) |
| result | JSON: iterations, stop reason, PSNR where the truth was given |

Write-ahead log, `synchronous=FULL`: what was committed is on the disk.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipengine.errors import InputError, OutputError
from dipengine.scheduling.facts import FileFacts, facts_json
from dipengine.scheduling.jobs import Job, Request

FORMAT = 1
_APPLICATION = 0x44495031  # "DIP1"
# On these WAL's shared memory or its locks do not work, or not always.
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "afs", "fuse.sshfs", "beegfs"}

# What may have changed of a job.
REQUEST, INPUT, FRAME_BEFORE = "its parameters have changed", "its input is another file", "the frame before it is another one"

_SCHEMA = """
CREATE TABLE requests (id INTEGER PRIMARY KEY, json TEXT NOT NULL UNIQUE, digest TEXT NOT NULL);
CREATE TABLE jobs (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  input TEXT NOT NULL,
  output TEXT NOT NULL UNIQUE,
  request INTEGER NOT NULL REFERENCES requests(id),
  priority INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed')),
  attempts INTEGER NOT NULL DEFAULT 0,
  error TEXT, queued_at REAL NOT NULL, started_at REAL, finished_at REAL, seconds REAL,
  files TEXT, environment TEXT, note TEXT, result TEXT, after TEXT
);
CREATE INDEX jobs_by_state ON jobs(state);
"""


@dataclass(slots=True)
class Row:
    """A job as the driver keeps it in memory."""

    id: int
    job: Job
    state: str
    attempts: int
    files: str | None = None  # JSON, of jobs that are done
    environment: str | None = None
    canvas: object = None  # where known: jobs of one canvas share a device's plan
    stage: str = "image"  # what is to be done next; "tile" and "blend" of an image in tiles
    parent: "Row | None" = None  # of a tile, which has no row in the ledger: the image's
    tile: int = -1
    seen: str | None = None  # as `files`, from the last start

    @property
    def name(self) -> str:
        """By which files of this job are told from those of others."""
        return str(self.id) if self.parent is None else f"{self.parent.id}t{self.tile}"

    @property
    def order(self) -> int:
        """Among jobs of one priority."""
        return self.id if self.parent is None else self.parent.id


class Ledger:
    """One open ledger; a second engine that opens it is refused."""

    def __init__(self, path: str | os.PathLike | None) -> None:
        """path: None keeps it in memory, for engines that are not to be resumed.

        Raises InputError (in use, foreign, of a newer version, on a network's disk) and OutputError (cannot be written).
        """
        self.path = None if path is None else Path(path)
        self._lock: Lock | None = None
        self._requests: dict[int, Request] = {}
        self._request_ids: dict[str, int] = {}
        if self.path is not None:
            _check_local(self.path)
            self._lock = Lock(Path(f"{self.path}.lock"), f"ledger {self.path}", "--ledger, or -o where it lies below that")
        try:
            with self._sentences():
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._db = sqlite3.connect(":memory:" if self.path is None else self.path, isolation_level=None, check_same_thread=False)
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application = self._db.execute("PRAGMA application_id").fetchone()[0]
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if tables and application != _APPLICATION:
            raise InputError(f"{self.path} is no ledger of dipengine; choose another --ledger.")
        if tables and (said := self._db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise InputError(f"The ledger {self.path} is damaged ({said.splitlines()[0]}); restore a copy of it, or choose another "
                             f"--ledger to begin anew.")
        if found > FORMAT:
            raise InputError(f"{self.path} is a ledger of format {found} and this version reads {FORMAT}; use the version "
                             f"of dipengine that wrote it, or choose another --ledger.")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA foreign_keys=ON")
        if not tables:
            self._db.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA application_id={_APPLICATION}; PRAGMA user_version={FORMAT}; COMMIT;"
            )

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if "not a database" in str(error) or "malformed" in str(error):
                raise InputError(f"{self.path} is no ledger of dipengine, or damaged ({error}); choose another --ledger.") from error
            if "locked" in str(error):
                raise InputError(f"The ledger {self.path} is locked by another program; end that, then run again.") from error
            raise OutputError(f"The ledger {self.path} cannot be written ({error}); free some space, then run again: nothing "
                              f"that was done is lost.") from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written within is on the disk when this ends, all of it, or none."""
        with self._sentences():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:  # a full disk has ended it already
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    # ---- jobs coming in -----------------------------------------------------------------------------------------

    def enter(self, jobs: Iterable[Job]) -> Iterator[tuple[Row, str]]:
        """Enter the jobs that are new; the rows of all in their order, each with what has changed since: empty, or `REQUEST`,
        `INPUT`, `FRAME_BEFORE`.

        What has changed is not written before `requeue`. To be used up within `transaction`.
        """
        now = time.time()
        for job in jobs:
            number = self._request_id(job.request)
            found = self._db.execute(
                "SELECT id, state, attempts, files, environment, request, input, after FROM jobs WHERE output = ?", (job.output,)
            ).fetchone()
            if found is None:
                cursor = self._db.execute(
                    "INSERT INTO jobs (input, output, request, priority, state, queued_at, after) VALUES (?, ?, ?, ?, 'queued', ?, ?)",
                    (job.input, job.output, number, job.priority, now, job.after),
                )
                yield Row(cursor.lastrowid, job, "queued", 0), ""
                continue
            identity, state, attempts, files, environment, request, source, after = found
            changed = ""
            if self._request(request).digest != job.request.digest:
                changed = REQUEST
            elif source != job.input:
                changed = INPUT
            elif after != job.after:
                changed = FRAME_BEFORE
            yield Row(identity, job, state, attempts, files, environment), changed

    def requeue(self, row: Row, note: str = "", *, anew: bool = True) -> None:
        """Queue a job again, with the request that it has now. Attempts go on counting: each has names of its own.

        anew: it has become another job, and what its first start fixed counts no more; else the note is put behind what is noted.
        """
        self._db.execute(
            "UPDATE jobs SET state='queued', input=?, request=?, priority=?, after=?, error=NULL, finished_at=NULL, seconds=NULL, "
            "files=NULL, result=NULL, queued_at=? WHERE id=?",
            (row.job.input, self._request_id(row.job.request), row.job.priority, row.job.after, time.time(), row.id),
        )
        row.state, row.files = "queued", None
        if anew:
            row.environment = None
            self._db.execute("UPDATE jobs SET environment=NULL, note=NULL WHERE id=?", (row.id,))
        if note:
            self.note(row, note)

    def moved(self, row: Row, files: str) -> None:
        """The input of a job lies elsewhere now, as it was."""
        row.files = files
        self._db.execute("UPDATE jobs SET input=?, files=? WHERE id=?", (row.job.input, files, row.id))

    def _request_id(self, request: Request) -> int:
        known = self._request_ids.get(request.json)
        if known is None:
            self._db.execute("INSERT OR IGNORE INTO requests (json, digest) VALUES (?, ?)", (request.json, request.digest))
            known = self._db.execute("SELECT id FROM requests WHERE json = ?", (request.json,)).fetchone()[0]
            self._request_ids[request.json] = known
            self._requests[known] = request
        return known

    def _request(self, number: int) -> Request:
        if number not in self._requests:
            text = self._db.execute("SELECT json FROM requests WHERE id = ?", (number,)).fetchone()[0]
            self._requests[number] = Request.from_dict(json.loads(text))
        return self._requests[number]

    # ---- what becomes of them -----------------------------------------------------------------------------------

    def started(self, row: Row, environment: str, note: str | None) -> None:
        """A new attempt, its number in the row already, on a machine like `environment` says; the first one's stays."""
        row.environment = row.environment or environment
        self._db.execute(
            "UPDATE jobs SET state='running', attempts=?, started_at=?, environment=?, note=coalesce(?, note) WHERE id=?",
            (row.attempts, time.time(), row.environment, note, row.id),
        )

    def note(self, row: Row, note: str) -> None:
        """Put behind what is noted already."""
        self._db.execute("UPDATE jobs SET note=coalesce(note || '; ' || ?1, ?1) WHERE id=?2", (note, row.id))

    def back(self, row: Row, error: str | None = None) -> None:
        """The attempt came to nothing; the job waits again."""
        row.state = "queued"
        self._db.execute("UPDATE jobs SET state='queued', error=?, environment=? WHERE id=?", (error, row.environment, row.id))

    def done(self, row: Row, files: list[FileFacts], result: dict[str, Any]) -> None:
        row.state = "done"
        row.files = facts_json(files)
        self._db.execute(
            "UPDATE jobs SET state='done', error=NULL, finished_at=?, seconds=?, files=?, result=?, environment=? WHERE id=?",
            (time.time(), result.get("seconds"), row.files, json.dumps(result), row.environment, row.id),
        )

    def failed(self, row: Row, error: str) -> None:
        row.state, row.files = "failed", row.seen
        self._db.execute(
            "UPDATE jobs SET state='failed', error=?, finished_at=?, environment=?, files=? WHERE id=?",
            (error, time.time(), row.environment, row.files, row.id),
        )

    def forget(self, row: Row) -> None:
        """Take a finished job out, in engines that keep nothing."""
        self._db.execute("DELETE FROM jobs WHERE id=?", (row.id,))

    def set_files(self, row: Row, files: str) -> None:
        row.files = files
        self._db.execute("UPDATE jobs SET files=? WHERE id=?", (files, row.id))

    def error(self, row: Row) -> str:
        """Why a job failed last."""
        return self._db.execute("SELECT error FROM jobs WHERE id=?", (row.id,)).fetchone()[0] or ""

    # ---- reading ------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Jobs by state, of the whole ledger."""
        with self._sentences():
            return dict(self._db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows as dictionaries, in the order of their entry."""
        with self._sentences():
            cursor = self._db.execute(
                "SELECT jobs.*, requests.json AS asked FROM jobs JOIN requests ON requests.id = request ORDER BY jobs.id"
            )
            names = [column[0] for column in cursor.description]
            for values in cursor:
                yield dict(zip(names, values))

    def close(self) -> None:
        """Close the file and let another engine have it."""
        if getattr(self, "_db", None) is not None:
            self._db.close()
            self._db = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None


class Lock:
    """Held from the first word on; the operating system drops it with the process, however that ends."""

    def __init__(self, path: Path, what: str, option: str) -> None:
        """path: a file for it alone. what, option: that it stands for, and by which that was chosen, for the errors.

        Raises InputError where another engine has it, and OutputError.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+", encoding="ascii")
        except OSError as error:
            raise OutputError(f"The {what} cannot be written ({error.strerror or error}); choose another "
                              f"{option}.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = self._file.read().strip()
            self._file.close()
            raise InputError(f"Another engine works on the {what}" + (f" (process {owner})" if owner else "")
                             + "; wait for it, or stop it first.") from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def _check_local(path: Path) -> None:
    """SQLite's write-ahead log needs shared memory and locks that network file systems do not have."""
    place = os.path.realpath(path.parent)
    best, kind = "", ""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                _, at, file_system = line.split()[:3]
                at = at.replace("\\040", " ")
                inside = at == "/" or place == at or place.startswith(at + "/")
                if inside and len(at) >= len(best):
                    best, kind = at, file_system
    except OSError:  # no such list here
        return
    if kind in _REMOTE:
        raise InputError(f"The ledger {path} would lie on a network's disk ({kind}), where no crash is safe; give --ledger a "
                         f"place on a local one.")
