"""Files that a command writes beside its main result: refused before the work where they could not be written after it."""

from __future__ import annotations

import os
from pathlib import Path

from dipengine.errors import InputError


def check_side_file(path: Path | None, ending: str) -> None:
    """Raises InputError for another ending, OutputError where no file can be put; None is no file."""
    from dipengine.images.atomic import check_target

    if path is None:
        return
    if path.suffix != ending:
        raise InputError(f"{os.fspath(path)!r} should end in {ending}.")
    check_target(path)
