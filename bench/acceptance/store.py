"""What the steps found, on the disk: a file for each, whole or not there at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from acceptance.step import ROOT

SOURCES = ("CMakeLists.txt", "cmake", "csrc", "bindings", "engine", "tests", "bench/acceptance", "bench/layers.py", "demo/photograph.png")
_IGNORED = {".so", ".pyc"}


def fingerprint(root: Path = ROOT) -> str:
    """Of everything that results depend on: they are kept for as long as it stays."""
    found = hashlib.sha256()
    for name in SOURCES:
        top = root / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and path.suffix not in _IGNORED:
                found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]


class Busy(Exception):
    """Another call works in the folder."""


class Store:
    """A folder of results. They are of one state of the sources, `begin` forgets those of another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._results = folder / "results"

    def lock(self) -> int:
        """A file descriptor that holds the folder until it is closed, by this process and those that inherit it. Raises Busy."""
        self.folder.mkdir(parents=True, exist_ok=True)
        held = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            raise Busy(f"Another acceptance works in {self.folder}; wait for it, or give another folder.") from None
        return held

    def begin(self, of: str) -> bool:
        """Make ready for results of the sources with that fingerprint; True where others were forgotten."""
        self._results.mkdir(parents=True, exist_ok=True)
        mark = self._results / "of.json"
        before = json.loads(mark.read_text())["fingerprint"] if mark.exists() else None
        if before == of:
            return False
        shutil.rmtree(self._results)
        self._results.mkdir()
        _write(mark, {"fingerprint": of})
        return before is not None

    def result(self, part: str, name: str) -> dict[str, Any] | None:
        path = self._results / part / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, part: str, name: str, result: dict[str, Any], seconds: float) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        _write(self._results / part / f"{name}.json", result | {"ended": now, "took": round(seconds, 2)})
        self.under_way_file.unlink(missing_ok=True)

    def forget(self, part: str, names: Iterable[str]) -> None:
        for name in names:
            (self._results / part / f"{name}.json").unlink(missing_ok=True)

    # ---- going from machine to machine --------------------------------------------------------------------------------

    def pack(self, names: Iterable[str], path: Path) -> None:
        """Files and folders of this one as a .tar.gz, whole or not at all."""
        new = path.with_suffix(".new")
        with tarfile.open(new, "w:gz", compresslevel=3) as packed:
            for name in names:
                top = self.folder / name
                for one in sorted(top.rglob("*")) if top.is_dir() else [top]:
                    if one.is_file() and one.suffix != ".new" and "__pycache__" not in one.parts:  # no result that is being written
                        packed.add(one, str(one.relative_to(self.folder)), recursive=False)
        new.replace(path)

    def unpack(self, path: Path) -> None:
        """What `pack` made, in the place of what there is."""
        with tarfile.open(path) as packed:
            for name in {member.name.split("/")[0] for member in packed}:
                shutil.rmtree(self.folder / name, ignore_errors=True)
            # Python 3.11 has the filter from its fourth release on.
            packed.extractall(self.folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))

    # ---- what is being done -----------------------------------------------------------------------------------------

    @property
    def under_way_file(self) -> Path:
        return self.folder / "under-way.json"

    def start(self, part: str, name: str) -> None:
        _write(self.under_way_file, {"part": part, "name": name, "began": time.time()})

    def under_way(self) -> dict[str, Any] | None:
        """The step that was started last and has not ended; it may have died."""
        try:
            return json.loads(self.under_way_file.read_text())
        except FileNotFoundError:
            return None

    def log(self, part: str) -> Path:
        path = self.folder / "logs" / f"{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("w") as file:
        json.dump(values, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
