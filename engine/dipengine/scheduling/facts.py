"""By which a changed file is noticed: size, time and digest of what a job has read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dipengine.errors import InputError
from dipengine.images import Image, atomic_path, read_image
from dipengine.images.pages import file_and_page
from dipengine.images.reading import digest_of


@dataclass(frozen=True)
class FileFacts:
    """By which a changed file is noticed: its size and time at a glance, its digest where these differ."""

    path: str
    size: int
    modified_ns: int
    sha256: str  # empty: nobody has read it to its end


def facts_json(files: Iterable[FileFacts]) -> str:
    """As the ledger keeps them."""
    return json.dumps([[f.path, f.size, f.modified_ns, f.sha256] for f in files])


def seen_facts(paths: Iterable[str]) -> list[FileFacts]:
    """Size and time of those that are there."""
    found = []
    for path in paths:
        with suppress(OSError, ValueError):
            status = os.stat(file_and_page(path)[0])
            found.append(FileFacts(path, status.st_size, status.st_mtime_ns, ""))
    return found


def facts_of(path: str) -> FileFacts:
    """Size, time and digest of a file, of a page those of its file. Raises InputError where it cannot be read."""
    file = file_and_page(path)[0]
    if not os.path.isfile(file):  # to the end of a pipe or a device nobody comes
        raise InputError(f"There is no file {file!r}; check the path.")
    try:
        status = os.stat(file)
    except OSError as error:
        raise InputError(f"{file} cannot be opened ({error.strerror or error}); check the path.") from error
    return FileFacts(path, status.st_size, status.st_mtime_ns, digest_of(path))


class Files:
    """Reads files and keeps what they are known by."""

    def __init__(self, max_pixels: int) -> None:
        self.facts: list[FileFacts] = []
        self._max_pixels = max_pixels

    def image(self, path: str) -> Image:
        file = file_and_page(path)[0]
        status = os.stat(file) if os.path.exists(file) else None
        image = read_image(path, max_pixels=self._max_pixels)
        self.facts.append(FileFacts(path, status.st_size, status.st_mtime_ns, image.sha256))
        return image

    def note(self, path: str) -> None:
        self.facts.append(facts_of(path))


def keep_facts(folder: Path, files: Iterable[FileFacts]) -> None:
    """Beside a plan of tiles: how its files were when it was made. What changes while the tiles are fitted is noticed so."""
    with atomic_path(folder / "files.json") as beside:
        beside.write_text(facts_json(files), encoding="utf-8")


def kept_facts(folder: Path) -> tuple[FileFacts, ...]:
    return tuple(FileFacts(*values) for values in json.loads((folder / "files.json").read_text(encoding="utf-8")))
