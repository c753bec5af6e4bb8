"""Folders of pictures, batches of them in this process and in others, and what they left, for tests."""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dipengine.cli.main import main
from dipengine.images import Image, write_image
from conftest import synthetic_picture

FIT = ["--channels", "8", "--levels", "2", "--iterations", "30", "--stop", "fixed"]


def picture(path, height, width, seed=0, dtype=np.uint8):
    pixels = np.clip(synthetic_picture(height, width) * 255 + np.random.default_rng(seed).normal(0, 20, (height, width, 3)), 0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.rint(pixels).astype(np.uint8) if dtype == np.uint8 else np.rint(pixels * 257).astype(dtype)
    write_image(path, pixels, Image(pixels))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """in/: four pictures of mixed sizes, one of 16 bits, and two broken files."""
    picture(tmp_path / "in" / "a.png", 24, 30)
    picture(tmp_path / "in" / "b.png", 17, 33, 1)
    picture(tmp_path / "in" / "deep" / "c.tif", 20, 20, 2, np.uint16)
    picture(tmp_path / "in" / "deep" / "d.jpg", 28, 24, 3)
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    (tmp_path / "in" / "empty.tif").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


OUTPUTS = {"a.png", "b.png", "deep/c.tif", "deep/d.png"}


def batch(*more, source="in", out="out", fit=FIT):
    return main(["batch", source, "-o", out, *fit, "--quiet", *map(str, more)])


def images(out="out"):
    """Digest of every output image, by its place."""
    found = {}
    for place, folders, names in os.walk(out):
        folders[:] = [name for name in folders if name != ".dipengine"]  # where files come and go
        paths = (Path(place) / name for name in names if name.endswith((".png", ".tif")))
        found |= {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return found


def everything(out="out"):
    return {path.relative_to(out).as_posix() for path in Path(out).rglob("*") if path.is_file()}


def rows(out="out"):
    with sqlite3.connect(f"file:{out}/.dipengine/ledger.sqlite?mode=ro", uri=True) as db:
        db.row_factory = sqlite3.Row
        return {row["output"]: dict(row) for row in db.execute("SELECT * FROM jobs")}


def begun(name, out="out"):
    """Whose weights an image of the batch began with, as its record says."""
    return json.loads(Path(f"{out}/{name}.json").read_text())["init_from"]


def start(*more, out="out", fit=FIT, source="in"):
    return subprocess.Popen(
        [sys.executable, "-m", "dipengine", "batch", source, "-o", out, *fit, *map(str, more)], stderr=subprocess.PIPE, text=True
    )


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def workers(process):
    return [int(line) for line in subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def checkpoints(out="out"):
    return list(Path(out).glob(".dipengine/checkpoints/[0-9]*.safetensors"))


LONG = ["--channels", "8", "--levels", "2", "--iterations", "6000", "--stop", "fixed"]
