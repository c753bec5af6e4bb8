"""Where the files of a batch lie: outputs, what is being written, checkpoints. Names carry job and attempt."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from dipengine.errors import OutputError
from dipengine.images.atomic import remove_leftovers
from dipengine.scheduling.ledger import Lock
from dipengine.scheduling.sources import OWN_FOLDER

_CHECKPOINT = re.compile(r"(\d+(?:t\d+)?)\.(\d+)\.safetensors")


class Places:
    """`folder`/<outputs>, and below `folder`/.dipengine: ledger.sqlite, staging/<job>.<attempt>/, checkpoints/, tiles/<job>/,
    weights/<job>.safetensors.

    Jobs go by `Row.name`: a tile's is that of its image with the tile's number.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        """Touches nothing; `prepare` does."""
        self.folder = Path(folder)
        self.own = self.folder / OWN_FOLDER
        self.ledger = self.own / "ledger.sqlite"
        self._staging = self.own / "staging"
        self._checkpoints = self.own / "checkpoints"
        self._tiles = self.own / "tiles"
        self._attempts: defaultdict[str, list[int]] = defaultdict(list)
        self._lock: Lock | None = None

    def prepare(self) -> None:
        """Take the folder, make those within, and remove what was being written when an earlier engine ended.

        Raises InputError where another engine works here (its ledger may lie elsewhere), and OutputError.
        """
        self._lock = Lock(self.own / "lock", f"folder {self.folder}", "-o")
        try:
            shutil.rmtree(self._staging, ignore_errors=True)
            for place in (self._staging, self._checkpoints, self._tiles):
                place.mkdir(parents=True, exist_ok=True)
            for name in os.listdir(self._checkpoints):
                found = _CHECKPOINT.fullmatch(name)
                if found:
                    self._attempts[found[1]].append(int(found[2]))
                else:
                    (self._checkpoints / name).unlink()
        except OSError as error:
            raise OutputError(f"The folder {self.folder} cannot be written ({error.strerror or error}); choose another -o.") from error

    def staging(self, job: str, attempt: int) -> str:
        return os.fspath(self._staging / f"{job}.{attempt}")

    def checkpoint(self, job: str, attempt: int) -> str:
        """Where this attempt keeps its checkpoint; it counts as there from now on."""
        if attempt not in self._attempts[job]:
            self._attempts[job].append(attempt)
        return os.fspath(self._checkpoints / f"{job}.{attempt}.safetensors")

    def latest(self, job: str) -> str | None:
        """The checkpoint of the last attempt that wrote one."""
        for attempt in sorted(self._attempts.get(job, ()), reverse=True):
            path = self._checkpoints / f"{job}.{attempt}.safetensors"
            if path.exists():
                return os.fspath(path)
        return None

    def tiles(self, job: str) -> str:
        """Folder of the plan of an image in tiles."""
        return os.fspath(self._tiles / job)

    def weights(self, job: str) -> str:
        """Where the weights are kept that the frame behind begins with, below the folder."""
        return f"{OWN_FOLDER}/weights/{job}.safetensors"

    def drop_weights(self, job: str) -> None:
        (self.folder / self.weights(job)).unlink(missing_ok=True)

    def forget(self, job: str) -> None:
        """Remove a job's checkpoints, and its tiles with theirs."""
        if (self._tiles / job).exists():
            shutil.rmtree(self._tiles / job, ignore_errors=True)
            for tile in [name for name in self._attempts if name.startswith(f"{job}t")]:
                self.forget(tile)
        for attempt in self._attempts.pop(job, ()):
            path = self._checkpoints / f"{job}.{attempt}.safetensors"
            path.unlink(missing_ok=True)
            remove_leftovers(path)  # of a worker that was killed while it wrote

    def discard(self, job: str, attempt: int) -> None:
        """Remove what an attempt has staged."""
        shutil.rmtree(self.staging(job, attempt), ignore_errors=True)

    def publish(self, job: str, attempt: int, names: Iterable[str]) -> None:
        """Staged files, on the disk already, take their places; their folders are on the disk when this returns.

        Raises OSError; what has taken its place stays, and another attempt replaces it.
        """
        folders = set()
        for name in names:
            target = self.folder / name
            for parent in reversed(target.parents):
                if not parent.exists():
                    parent.mkdir(exist_ok=True)
                    folders.add(parent.parent)
            os.replace(os.path.join(self.staging(job, attempt), name), target)
            folders.add(target.parent)
        for folder in folders:
            _flush(folder)
        self.discard(job, attempt)

    def leave(self) -> None:
        """Remove the folders that are empty now, and let another engine have the place."""
        if self._lock is None:
            return
        for place in (self._staging, self._checkpoints, self._tiles, self.own / "weights"):
            with contextlib.suppress(OSError):
                place.rmdir()
        self._lock.release()
        self._lock = None


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
