"""Write a file beside its target and rename it when it is whole: a crash, a full disk or Ctrl-C leaves the old one."""

import contextlib
import errno
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dipengine.errors import DipEngineError, OutputError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give an empty new file in the target's folder, with its suffix; on a clean exit it becomes the target.

    The file is flushed to disk before it is renamed. On any error, KeyboardInterrupt included, it is removed and
    the target stays as it was. A target that is a symbolic link keeps its name and its file is replaced. The new
    file has the old one's permissions, or those of the umask. Raises OutputError for every OSError inside, and for errors of
    libraries that stand for one: its cause is the system's.
    """
    target = Path(os.path.realpath(path))
    temporary = _beside(target)
    try:
        _create(temporary)
        yield temporary
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o7777)
        _flush(temporary)
        os.replace(temporary, target)
        _flush_folder(target.parent)
    except DipEngineError:
        raise
    except Exception as error:
        cause = _of_the_system(error, target.parent)
        if cause is None:
            raise
        said = (cause.strerror or str(cause).partition(". ")[0]).replace(str(temporary), target.name)
        raise OutputError(f"{path} cannot be written ({said}); free some space or choose another place.") from cause
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` beside the path and rename it there. Raises OutputError.

    For what libraries can give as bytes: some write files by way of temporary ones whose names we do not know, which nobody would
    remove after a kill -9 (safetensors' `save_file`, for one).
    """
    with atomic_path(path) as beside, open(beside, "wb") as file:
        file.write(data)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as JSON beside the path and rename it there. Raises OutputError."""
    with atomic_path(path) as beside, open(beside, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, allow_nan=False)
        file.write("\n")


_NOBODY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_FULL = 64 << 10  # bytes free: whoever writes a file finds a disk full


def nobody_can_write(error: BaseException | None) -> bool:
    """True where an error, or what it came from, says that the disk is full or read-only: the next file will fare no better."""
    return _comes_from(error, _NOBODY)


def name_too_long(error: BaseException | None) -> bool:
    """True where an error, or what it came from, says that no file can have the name."""
    return _comes_from(error, (errno.ENAMETOOLONG,))


def _comes_from(error: BaseException | None, numbers: tuple[int, ...]) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in numbers:
            return True
        error = error.__cause__
    return False


def _of_the_system(error: Exception, folder: Path) -> OSError | None:
    """What the system said, where a library has put it into words of its own or kept it to itself; None for other errors."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    for number in _NOBODY:
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    if not isinstance(error, OSError):
        return None
    with contextlib.suppress(OSError):
        room = os.statvfs(folder)
        if room.f_bavail * room.f_frsize < _FULL:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return error


def check_target(path: str | os.PathLike) -> None:
    """Say early that a file cannot be put at `path`. Raises OutputError: a folder, no such folder, not writable.

    Whether a folder takes files (permissions, read-only and network file systems, quotas) is found out by making one.
    """
    target = Path(os.path.realpath(path))
    if not printable_name(target):
        raise OutputError(f"{str(target)!r} is not a valid UTF-8 name, which libvips cannot write to; choose another output.")
    try:
        os.lstat(target)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); choose another output.") from error
    if target.is_dir():
        raise OutputError(f"{path} is a folder; give a file name inside it.")
    if not target.parent.exists():
        raise OutputError(f"The folder {target.parent} does not exist; create it or choose another output.")
    if not target.parent.is_dir():
        raise OutputError(f"{target.parent} is not a folder; choose another output.")
    if target.exists() and not target.is_file():
        raise OutputError(f"{path} is not a regular file; choose another output.")
    trial = _beside(target)
    try:
        _create(trial)
        os.unlink(trial)
    except OSError as error:
        raise OutputError(f"The folder {target.parent} is not writable ({error.strerror or error}); "
                          "change its permissions or choose another output.") from error


def printable_name(path: Path) -> bool:
    """Whether a path's bytes are valid UTF-8; others reach Python as surrogates, which no library takes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def remove_leftovers(path: str | os.PathLike) -> None:
    """Remove what processes that were killed while they wrote `path` left beside it. For files that one process writes."""
    target = Path(os.path.realpath(path))
    with contextlib.suppress(OSError):
        for name in os.listdir(target.parent):
            if re.fullmatch(re.escape(f".{_start_of(target.stem)}.") + "[0-9a-f]{12}" + re.escape(target.suffix), name):
                os.unlink(target.with_name(name))


def _beside(target: Path) -> Path:
    """A new name in the target's folder, with its suffix."""
    return target.with_name(f".{_start_of(target.stem)}.{secrets.token_hex(6)}{target.suffix}")


def _start_of(stem: str) -> str:
    """As much of a name as leaves room for what is put around it: names are limited in bytes."""
    return os.fsencode(stem)[:100].decode(errors="ignore")


def _create(path: Path) -> None:
    # 0o666 through the umask: what open() would have given the target itself.
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    # The rename is done by now; a file system that cannot sync folders is no reason to call it failed.
    with contextlib.suppress(OSError):
        _flush(folder)
