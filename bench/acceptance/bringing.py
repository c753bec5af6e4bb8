"""Brings what was found to where it outlives the machine: the results file, its table, and an archive that another call goes on from."""

from __future__ import annotations

import shutil
from pathlib import Path

from acceptance.store import Store

ARCHIVE = "acceptance.tar.gz"


def pack(store: Store, written: list[Path], out: Path) -> None:
    """Into the folder `out`, which is made: those files and the archive of the store."""
    out.mkdir(parents=True, exist_ok=True)
    for path in written:
        shutil.copyfile(path, out / path.name)
    store.pack(out / ARCHIVE)
