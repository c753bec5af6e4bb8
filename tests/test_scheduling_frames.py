"""Batches that begin with the weights of others: frames in order, series, one generator for all."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from dipengine.cli.main import main
from dipengine.images import read_image
from batches import FIT, batch, begun, everything, folder, images, picture, rows, start, wait_until


@pytest.fixture
def frames(folder):
    """frames/: five pictures of one scene with noise of their own, and one file that is broken."""
    for i in range(5):
        picture(folder / "frames" / f"f{i}.png", 24, 30, seed=i)
    return folder


def test_frames_begin_with_the_one_before(frames):
    fit = [*FIT, "--warm", "previous"]
    assert batch(source="frames", fit=fit) == 0
    assert begun("f0.png") is None
    for i in range(1, 5):
        assert begun(f"f{i}.png")["kind"] == "previous" and begun(f"f{i}.png")["source"].endswith(f"f{i - 1}.png")
    # As single commands would have it.
    assert main(["denoise", "frames/f0.png", "-o", "s0.png", *FIT, "--quiet", "--generator", "g0.safetensors"]) == 0
    assert main(["denoise", "frames/f1.png", "-o", "s1.png", *FIT, "--quiet", "--init-from", "g0.safetensors"]) == 0
    for i in range(2):
        assert np.array_equal(read_image(f"s{i}.png").pixels, read_image(f"out/f{i}.png").pixels), i
    [kept] = Path("out/.dipengine").glob("weights/*")  # of the last one, for frames to come
    before = images()
    # An engine that is killed between a frame's row and what follows from it leaves the weights of the frame before.
    shutil.copy(kept, kept.with_stem("3"))
    assert batch(source="frames", fit=fit) == 0 and {row["attempts"] for row in rows().values()} == {1}
    assert list(kept.parent.iterdir()) == [kept]
    # A frame that changes changes all that follow it.
    picture(frames / "frames" / "f3.png", 24, 30, seed=77)
    assert batch(source="frames", fit=fit) == 0
    changed = {name for name, digest in images().items() if digest != before[name]}
    assert changed == {"f3.png", "f4.png"}
    # One more is one fit more.
    picture(frames / "frames" / "f5.png", 24, 30, seed=5)
    assert batch(source="frames", fit=fit) == 0
    assert begun("f5.png")["source"].endswith("f4.png")
    assert {name: row["attempts"] for name, row in rows().items()} == {
        "f0.png": 2, "f1.png": 2, "f2.png": 2, "f3.png": 2, "f4.png": 2, "f5.png": 1,
    }
    assert batch(source="frames", fit=FIT) == 0  # and without a word no weights are taken over
    assert all(begun(f"f{i}.png") is None for i in range(5))


def test_a_broken_frame_is_stepped_over_and_comes_back(frames):
    fit = [*FIT, "--warm", "previous"]
    good = Path("frames/f2.png").read_bytes()
    assert batch(source="frames", out="reference", fit=fit) == 0
    Path("frames/f2.png").write_bytes(b"nonsense")
    assert batch(source="frames", fit=fit) == 1
    assert begun("f3.png")["source"].endswith("f1.png")
    Path("frames/f2.png").write_bytes(good)
    assert batch("--retry-failed", source="frames", fit=fit) == 0
    assert begun("f3.png")["source"].endswith("f2.png")
    assert images() == images("reference")
    assert {name: row["attempts"] for name, row in rows().items()} == {
        "f0.png": 1, "f1.png": 1, "f2.png": 2, "f3.png": 2, "f4.png": 2,
    }


def test_a_frame_of_another_size_says_that_it_began_anew(frames):
    picture(frames / "frames" / "f2.png", 40, 30)
    assert batch(source="frames", fit=[*FIT, "--warm", "previous"]) == 0
    assert "canvas" in begun("f2.png")["refused"]
    assert "canvas" in begun("f3.png")["refused"] and "refused" not in begun("f4.png")


def test_series_of_two_folders_and_kill_9(frames):
    for i in range(4):
        picture(frames / "frames" / "other" / f"g{i}.png", 20, 20, seed=i)
    fit = ["--channels", "8", "--levels", "2", "--iterations", "300", "--stop", "fixed", "--warm", "previous"]
    assert start(out="reference", fit=fit, source="frames").wait() == 0
    assert begun("other/g0.png", "reference") is None and begun("other/g1.png", "reference")["source"].endswith("g0.png")
    for count in (1, 3):
        process = start(fit=fit, source="frames")
        wait_until(lambda: len(images()) >= count)
        process.kill()
        process.communicate()
    assert start(fit=fit, source="frames").wait() == 0
    assert images() == images("reference") and everything() == everything("reference")


def test_all_begin_with_one_generator(frames, capsys):
    assert main(["denoise", "frames/f0.png", "-o", "s0.png", *FIT, "--quiet", "--generator", "g0.safetensors"]) == 0
    assert batch("--init-from", "g0.safetensors", source="frames") == 0
    assert {begun(f"f{i}.png")["kind"] for i in range(5)} == {"generator"}
    assert batch("--init-from", "g0.safetensors", source="frames", fit=[*FIT[2:], "--channels", "16"]) == 1
    assert "ask for the same network" in capsys.readouterr().err
    assert batch("--init-from", "g0.safetensors", "--warm", "previous", source="frames") == 2
