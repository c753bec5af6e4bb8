"""Output files appear whole or not at all."""

import errno
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from image_samples import noise, read_png

from dipengine.errors import OutputError
from dipengine.images import Image, atomic_path, read_image, write_image

LIKE = Image(pixels=noise("uint16", 3, (200, 300)))


def test_the_file_is_in_place_only_after_the_block(tmp_path):
    target = tmp_path / "out.json"
    target.write_text("old")
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".json" and temporary != target
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new" and os.listdir(tmp_path) == ["out.json"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path, interruption):
    target = tmp_path / "out.json"
    target.write_text("old")
    with pytest.raises(interruption), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise interruption
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["out.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_at_the_last_moment_leaves_the_old_file(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OutputError, match="No space left on device; free some|No space left on device.*free some"):
        write_image(target, LIKE.pixels, LIKE)
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["out.png"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "fits"])
def test_a_disk_that_fills_up_while_writing_leaves_the_old_file(tmp_path, suffix):
    """RLIMIT_FSIZE makes the kernel refuse writes past 4 kB, whichever library does them."""
    target = tmp_path / f"out.{suffix}"
    target.write_bytes(b"old")
    script = """
import resource, sys
import numpy as np
from dipengine.errors import OutputError
from dipengine.images import Image, write_image
pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_image(sys.argv[1], pixels, Image(pixels=pixels))
except OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script, str(target)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stdout and done.stdout.count("\n") == 1, done.stdout + done.stderr
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == [target.name]


def test_ctrl_c_in_the_middle_of_encoding_leaves_nothing(tmp_path, monkeypatch):
    import dipengine.images.writing as writing

    def interrupted(path, *_, **__):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "write_raster", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_image(tmp_path / "out.png", LIKE.pixels, LIKE)
    assert os.listdir(tmp_path) == []


def test_an_image_can_replace_its_own_source(tmp_path):
    write_image(tmp_path / "x.png", LIKE.pixels, LIKE)
    image = read_image(tmp_path / "x.png")
    write_image(tmp_path / "x.png", 65535 - image.pixels, image)
    np.testing.assert_array_equal(read_png(tmp_path / "x.png"), 65535 - LIKE.pixels)


def test_permissions_are_those_of_the_umask_or_of_the_old_file(tmp_path):
    old = os.umask(0o027)
    try:
        write_image(tmp_path / "new.png", LIKE.pixels, LIKE)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new.png").stat().st_mode) == 0o640
    (tmp_path / "new.png").chmod(0o604)
    write_image(tmp_path / "new.png", LIKE.pixels, LIKE)
    assert stat.S_IMODE((tmp_path / "new.png").stat().st_mode) == 0o604


def test_a_symbolic_link_stays_a_link(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "store" / "real.png")
    write_image(tmp_path / "link.png", LIKE.pixels, LIKE)
    assert (tmp_path / "link.png").is_symlink()
    np.testing.assert_array_equal(read_png(tmp_path / "store" / "real.png"), LIKE.pixels)
