"""The checkpoint file: a fit on its way, as safetensors with JSON metadata, to be continued with the same bits. Never pickle.

Tensors are those of `FitRun.state`: `parameters/<name>` (float32, the current weights), `losses` and `variances` (float64
[iterations]), `psnr` (float64 [n, 2]), and those of the path, `state` (uint8: csrc/fit/state.h) or the ones of `fit_state`.

Metadata key `dipengine-checkpoint` holds one JSON object, `format` 1: format, version, owner (whose fit it is, in the caller's
words), what `FitRun.state` says (settings: a digest; where: build, instruction set, precision, device, ...; iteration, seconds,
generator, code, canvas, ...), and sha256 over all of it and the tensors, since no checksum comes with the format.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dipengine._version import __version__
from dipengine.errors import InputError, OutputError
from dipengine.fitting.progress import ProgressCallback
from dipengine.fitting.run import FitRun
from dipengine.images.atomic import remove_leftovers, write_bytes

FORMAT = 1
KEY = "dipengine-checkpoint"
DEFAULT_EVERY = 60.0  # seconds
_ANEW = "repeat the command that it is of, name another checkpoint, or delete it to start anew"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    tensors: dict[str, np.ndarray]
    about: dict[str, Any]  # the metadata
    path: str


def write_checkpoint(path: str | os.PathLike, run: FitRun, owner: Any) -> None:
    """Write the fit as it stands, between two iterations: beside, flushed to the disk, renamed.

    owner: JSON-able, says whose fit this is; a checkpoint is taken up by its owner alone. Raises OutputError when the file cannot
    be written, InputError after an iteration that was broken off.
    """
    from safetensors.numpy import save

    tensors, about = run.state()
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    about = {"format": FORMAT, "version": __version__, "owner": owner, **about}
    about["sha256"] = _digest(tensors, about)
    write_bytes(path, save(tensors, metadata={KEY: json.dumps(about, allow_nan=False)}))


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read a checkpoint file. Raises InputError, in one sentence, for a missing, foreign, newer, truncated or damaged one."""
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    if not os.path.isfile(path):
        raise InputError(f"There is no checkpoint {name!r}; check the path.")
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise InputError(f"{name!r} is no checkpoint of dipengine; name a file that --checkpoint wrote, or a new one.")
            about = json.loads(text)
            if about["format"] != FORMAT:
                raise InputError(
                    f"The checkpoint {name!r} has format {about['format']} and this version reads {FORMAT}; continue it with the "
                    f"version of dipengine that wrote it ({about.get('version')}), or delete it to start anew."
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{name!r} cannot be read as a checkpoint ({error}); delete it to start anew.") from error
    digest = about.pop("sha256", None)
    if digest != _digest(tensors, about):
        raise InputError(f"The checkpoint {name!r} is damaged: its bytes are not those that were written; delete it to start anew.")
    return Checkpoint(tensors, about, name)


def take_up(path: str | os.PathLike, run: FitRun, owner: Any) -> None:
    """Let `run` go on from a checkpoint file.

    Raises InputError, in one sentence and with the run as it was, for a file that cannot be read, is another owner's, or is of
    other settings or another place (see `FitRun.restore`).
    """
    saved = read_checkpoint(path)
    if saved.about.get("owner") != json.loads(json.dumps(owner)):
        raise InputError(f"The checkpoint {saved.path!r} is of another image or other parameters; {_ANEW}.")
    try:
        run.restore(saved.tensors, saved.about)
    except InputError as error:
        raise InputError(str(error).replace("The saved fit", f"The checkpoint {saved.path!r}", 1)) from error


class Keeper:
    """Keeps one run's checkpoint: takes it up where it is there, writes it every so many seconds, removes it in the end."""

    def __init__(
        self,
        path: str | os.PathLike,
        owner: Any,
        *,
        every: float = DEFAULT_EVERY,
        on_problem: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """on_problem: told when a checkpoint cannot be written, which is no reason to lose the fit."""
        if not every >= 0:
            raise InputError(f"A checkpoint every {every} seconds cannot be written; give a number of seconds, 0 or more.")
        self.path = path
        self._owner = owner
        self._every = every
        self._on_problem = on_problem

    def take_up(self, run: FitRun) -> bool:
        """Go on from the file where there is one. Raises InputError as `take_up` does."""
        remove_leftovers(self.path)
        if not os.path.exists(self.path):
            return False
        take_up(self.path, run, self._owner)
        return True

    def advance(self, run: FitRun, progress: ProgressCallback | None = None) -> None:
        """Run the fit to its end, written every so often, and once more where a KeyboardInterrupt ends it."""
        written, count = time.monotonic(), 1
        try:
            while True:
                begin, before = time.monotonic(), run.iteration
                if run.advance(count, progress):
                    return
                now = time.monotonic()
                pace = (now - begin) / max(1, run.iteration - before)
                if now - written >= self._every:
                    self.write(run)
                    now = written = time.monotonic()
                # At most as many iterations as fit into the time that is left, and a look at the clock in between.
                left = min(self._every - (now - written), 5.0)
                count = max(1, int(left / pace)) if pace > 0 else 1
        except KeyboardInterrupt:
            if run.iteration and run.can_be_saved:
                self.write(run)
            raise

    def write(self, run: FitRun) -> None:
        """Write the file now."""
        try:
            write_checkpoint(self.path, run, self._owner)
        except OutputError as error:
            self._on_problem(str(error))

    def remove(self) -> None:
        """The result is safe elsewhere."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._on_problem(f"The checkpoint {os.fspath(self.path)!r} could not be removed ({error.strerror or error}); delete it.")


def _digest(tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
