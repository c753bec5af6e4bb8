"""Where built TensorRT engines are kept: folders that nobody but the user may read or write.

An engine is machine code that the runtime loads and runs. So each folder from ours downwards must be a real one (no link), belong to
the user and be closed to everybody else; one that is not is refused, never mended: what lies in it may be someone else's.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

from dipengine import environment
from dipengine.errors import OutputError


def engine_folder(model: bytes, gpu: str, runtime: str) -> Path:
    """The folder of one model's engines, on one kind of GPU, by one version of the runtime; it is made where it is missing.

    Raises OutputError for a folder that is not the user's own, or cannot be made.
    """
    name = f"{hashlib.sha256(model).hexdigest()[:32]}-{_word(gpu)}-{_word(runtime)}"
    folder = environment.cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for part in ("dipengine", "tensorrt", name):
            folder = private_folder(folder / part)
    except FileExistsError as error:
        raise OutputError(f"{folder} is not a folder; set XDG_CACHE_HOME to one.") from error
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"The cache of TensorRT engines cannot be made in {folder} ({error.strerror}); set XDG_CACHE_HOME.") from error
    return folder


def private_folder(path: Path) -> Path:
    """Make the folder, or check that it is the user's alone. Raises OutputError where it is not."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise OutputError(f"{path} is no folder of its own (a link or a file); remove it, or set XDG_CACHE_HOME to another place.")
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077):
        raise OutputError(f"{path} is open to other users, who could have put engines there; remove it, or set XDG_CACHE_HOME to "
                          "another place.")
    return path


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_.") or "unknown"
