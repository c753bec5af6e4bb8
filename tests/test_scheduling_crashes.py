"""The engine or a worker ends between any two of its writes: no job is lost, no output half-written, the same bits in the end."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
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


def batch(folder, out, environment=None, fit=FIT):
    command = [sys.executable, "-m", "dipengine", "batch", "in", "-o", out, *fit]
    return subprocess.run(command, cwd=folder, env=os.environ | (environment or {}), capture_output=True, text=True, timeout=120)


def found(folder, out):
    """Digest of every file but those that tell times."""
    place = folder / out
    return {
        path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".png" else None
        for path in place.rglob("*") if path.is_file() and not path.name.startswith("ledger.sqlite-")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "where, frames",
    [("scheduling.worker", 1), ("batch", 1), pytest.param("batch", 2, marks=pytest.mark.long)],
)
def test_killed_before_each_of_its_writes(folder, where, frames):
    for frame in range(1, frames):
        shutil.copy(folder / "in/deep/a.png", folder / f"in/deep/{'abc'[frame]}.png")
    fit = [*FIT, *(["--warm", "previous"] if frames > 1 else [])]
    assert batch(folder, "reference", fit=fit).returncode == 0
    wanted = found(folder, "reference")
    assert {name for name in wanted if name.endswith(".png")} == {f"deep/{'abc'[frame]}.png" for frame in range(frames)}
    died = 0
    for calls in range(1, 400):
        hook, flag, out = folder / f"hook{calls}", folder / f"flag{calls}", f"out{calls}"
        hook.mkdir()
        text = DEADLY.format(where=repr("scheduling.worker" if where != "batch" else " batch "), calls=calls, flag=str(flag))
        (hook / "sitecustomize.py").write_text(text)
        first = batch(folder, out, {"PYTHONPATH": os.pathsep.join([str(hook), os.environ.get("PYTHONPATH", "")])}, fit)
        if not flag.exists():
            break  # it has fewer writes than that
        died += 1
        if where == "batch":
            assert first.returncode == -9
            for name, digest in found(folder, out).items():
                assert not name.endswith(".png") or name.startswith(".dipengine") or digest == wanted[name], f"half-written: {name}"
            first = batch(folder, out, fit=fit)
        assert first.returncode == 0, (calls, first.stderr)
        assert found(folder, out) == wanted, calls
    assert died > 15, died


@pytest.mark.long
def test_two_hundred_images_killed_twenty_times(tmp_path):
    """195 pictures of 64 to 128 pixels a side and 5 broken files; kill -9 of the engine, or of a worker before it, at 20 random moments."""
    rng = np.random.default_rng(0)
    source = tmp_path / "in"
    source.mkdir()
    for i in range(195):
        height, width = rng.integers(64, 129, 2)
        pixels = np.rint(np.clip(synthetic_picture(height, width) * 255 + rng.normal(0, 20, (height, width, 3)), 0, 255)).astype(np.uint8)
        write_image(source / f"{i}.png", pixels, Image(pixels))
    for i in range(5):
        (source / f"broken{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n"[: 2 * i] + rng.bytes(40 * i))
    fit = ["--channels", "8", "--levels", "3", "--iterations", "120", "--stop", "fixed", "--quiet", "--checkpoint-every", "0.3"]

    def command(out):
        return [sys.executable, "-m", "dipengine", "batch", "in", "-o", out, *fit]

    assert subprocess.run(command("reference"), cwd=tmp_path, stderr=subprocess.DEVNULL).returncode == 1
    for turn in range(20):
        engine = subprocess.Popen(command("out"), cwd=tmp_path, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.2, 6))
        assert engine.poll() is None, "the batch ended before it was killed often enough"
        children = subprocess.run(["pgrep", "-P", str(engine.pid)], capture_output=True, text=True).stdout.split()
        if turn % 3 == 0 and children:
            os.kill(int(rng.choice(children)), signal.SIGKILL)
            time.sleep(rng.uniform(0, 1))
        engine.kill()
        engine.wait()
    last = subprocess.run(command("out"), cwd=tmp_path, capture_output=True, text=True)
    assert last.returncode == 1
    assert found(tmp_path, "out") == found(tmp_path, "reference")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["counts"] == {"done": 195, "failed": 5}
    failed = [job for job in summary["jobs"] if job["state"] == "failed"]
    assert all("broken" in job["input"] and len(job["error"]) > 20 for job in failed)
    print({"attempts": sum(job["attempts"] for job in summary["jobs"]), "most": max(job["attempts"] for job in summary["jobs"])})
