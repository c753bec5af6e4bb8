"""The engine or a worker ends between any two of its writes: no job is lost, no output half-written, the same bits in the end."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import synthetic_picture
from dipengine.images import Image, write_image

FIT = ["--channels", "8", "--levels", "1", "--iterations", "12", "--stop", "fixed", "--quiet", "--checkpoint-every", "0", "--workers", "1"]

# Run in front of everything else in a process: ends it by kill -9 just before the n-th call that changes something on a disk.
DEADLY = """
import os, sys
if {where} in sys.argv[0] or {where} in " ".join(getattr(sys, "orig_argv", [])):
    left = {calls}
    def deadly(function):
        def wrapped(*arguments, **named):
            global left
            left -= 1
            if left == 0 and not os.path.exists({flag!r}):
                os.close(os.open({flag!r}, os.O_CREAT))
                os.kill(os.getpid(), 9)
            return function(*arguments, **named)
        return wrapped
    for name in ("replace", "fsync", "unlink", "rmdir", "mkdir"):
        setattr(os, name, deadly(getattr(os, name)))
    import sqlite3
    connect = sqlite3.connect
    class Connection(sqlite3.Connection):
        def execute(self, statement, *more):
            return (deadly(super().execute) if statement in ("COMMIT", "BEGIN IMMEDIATE") else super().execute)(statement, *more)
    sqlite3.connect = lambda *arguments, **named: connect(*arguments, factory=Connection, **named)
"""


@pytest.fixture
def folder(tmp_path):
    pixels = np.rint(synthetic_picture(13, 12) * 255).astype(np.uint8)
    path = tmp_path / "in" / "deep" / "a.png"
    path.parent.mkdir(parents=True)
    write_image(path, pixels, Image(pixels))
    return tmp_path


def batch(folder, out, environment=None):
    command = [sys.executable, "-m", "dipengine", "batch", "in", "-o", out, *FIT]
    return subprocess.run(command, cwd=folder, env=os.environ | (environment or {}), capture_output=True, text=True, timeout=120)


def found(folder, out):
    """Digest of every file but those that tell times."""
    place = folder / out
    return {
        path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".png" else None
        for path in place.rglob("*") if path.is_file() and not path.name.startswith("ledger.sqlite-")
    }


@pytest.mark.slow
@pytest.mark.parametrize("where", ["scheduling.worker", "batch"])
def test_killed_before_each_of_its_writes(folder, where):
    assert batch(folder, "reference").returncode == 0
    wanted = found(folder, "reference")
    assert {name for name in wanted if name.endswith(".png")} == {"deep/a.png"}
    died = 0
    for calls in range(1, 400):
        hook, flag, out = folder / f"hook{calls}", folder / f"flag{calls}", f"out{calls}"
        hook.mkdir()
        text = DEADLY.format(where=repr("scheduling.worker" if where != "batch" else " batch "), calls=calls, flag=str(flag))
        (hook / "sitecustomize.py").write_text(text)
        first = batch(folder, out, {"PYTHONPATH": os.pathsep.join([str(hook), os.environ.get("PYTHONPATH", "")])})
        if not flag.exists():
            break  # it has fewer writes than that
        died += 1
        if where == "batch":
            assert first.returncode == -9
            for name, digest in found(folder, out).items():
                assert not name.endswith(".png") or name.startswith(".dipengine") or digest == wanted[name], f"half-written: {name}"
            first = batch(folder, out)
        assert first.returncode == 0, (calls, first.stderr)
        assert found(folder, out) == wanted, calls
    assert died > 15, died
