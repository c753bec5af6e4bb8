"""Brings what was found to where it outlives the machine: the results file, its table, and archives that another call goes on from, of
what was found and of what was built."""

from __future__ import annotations

import calendar
import shutil
import time
from pathlib import Path
from typing import Any

from acceptance.step import PASSED
from acceptance.store import Store

FOUND, BUILT = "acceptance.tar.gz", "build.tar.gz"
_PROGRAMS = "build/tests/silicon"


def pack(store: Store, written: list[Path], out: Path) -> None:
    """Into the folder `out`, which is made: those files and the archives of the store; what was built once."""
    out.mkdir(parents=True, exist_ok=True)
    for path in written:
        shutil.copyfile(path, out / path.name)
    store.pack(("results", "logs", "pytest"), out / FOUND)
    compiled = store.result("build", "compile")
    if compiled is not None and compiled["status"] == PASSED and not _is_of(out / BUILT, compiled):
        programs = sorted((store.folder / _PROGRAMS).glob("dipengine_*"))
        store.pack(("package", *(f"{_PROGRAMS}/{path.name}" for path in programs)), out / BUILT)


def _is_of(archive: Path, compiled: dict[str, Any]) -> bool:
    """Whether the archive was made behind that build."""
    ended = calendar.timegm(time.strptime(compiled["ended"], "%Y-%m-%dT%H:%M:%SZ"))
    return archive.exists() and archive.stat().st_mtime >= ended


def unpack(store: Store, archive: Path) -> None:
    """What `pack` made: the archive of what was found, with that of what was built where it lies beside it."""
    store.unpack(archive)
    if (built := archive.with_name(BUILT)).exists():
        store.unpack(built)
