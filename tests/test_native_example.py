"""csrc/examples: a C++ host, built from the installed package, restores as dipengine does in Python, to the bit."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest

import dipengine
from conftest import synthetic_picture
from dipengine.kernels import backend
from native_builds import CMAKE, ROOT, build, run

pytestmark = [
    pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="needs the source tree"),
    pytest.mark.skipif(CMAKE is None, reason='needs cmake: pip install "dipengine[test]"'),
    pytest.mark.skipif(not backend.native_available(), reason="needs the native core"),
]

SMALL = ("--iterations", "70", "--channels", "16", "--levels", "3", "--seed", "7")
SAME = {"iterations": 70, "channels": 16, "levels": 3, "seed": 7}
UNKNOWN = {"noise": "unknown"}  # a host estimates no noise


@pytest.fixture(scope="module")
def restore(prefix, tmp_path_factory) -> Path:
    return build(ROOT / "csrc/examples", tmp_path_factory.mktemp("restore"), f"-DCMAKE_PREFIX_PATH={prefix}") / "restore"


def write_pnm(path: Path, pixels: np.ndarray) -> Path:
    """Binary PPM or PGM of 8 or 16 bits, with comments wherever the format has them."""
    top = np.iinfo(pixels.dtype).max
    kind = "P6" if pixels.ndim == 3 else "P5"
    header = f"{kind} # a comment\n# 1 2 3\n{pixels.shape[1]}#behind a number\n\t{pixels.shape[0]}\r\n# last\n{top}\n"
    path.write_bytes(header.encode() + pixels.astype(pixels.dtype.newbyteorder(">")).tobytes())
    return path


def read_pnm(path: Path) -> np.ndarray:
    data = path.read_bytes()
    kind, width, height, top = re.match(rb"(P[56])\n(\d+) (\d+)\n(\d+)\n", data).groups()
    dtype = np.dtype("u1" if top == b"255" else ">u2")
    start = len(data) - int(width) * int(height) * (3 if kind == b"P6" else 1) * dtype.itemsize
    shape = (int(height), int(width), 3) if kind == b"P6" else (int(height), int(width))
    return np.frombuffer(data[start:], dtype).reshape(shape).astype(dtype.newbyteorder("="))


def damaged(dtype: str, colour: bool) -> np.ndarray:
    unit = synthetic_picture(41, 53)[:, :, : 3 if colour else 1]
    noisy = np.clip(unit + np.random.default_rng(2).normal(0, 0.08, unit.shape), 0, 1)
    pixels = np.rint(noisy * np.iinfo(dtype).max).astype(dtype)
    return pixels if colour else pixels[:, :, 0]


KNOWN = np.random.default_rng(3).random((41, 53)) > 0.4


@pytest.mark.parametrize("colour", [True, False], ids=["ppm", "pgm"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_host_gives_the_pixels_that_python_gives(restore, tmp_path, dtype, colour):
    pixels = damaged(dtype, colour)
    image = write_pnm(tmp_path / "in.ppm", pixels)
    result = run(restore, "denoise", image, tmp_path / "out.ppm", *SMALL)
    assert np.array_equal(read_pnm(tmp_path / "out.ppm"), dipengine.denoise(pixels, **SAME, **UNKNOWN).image)
    assert "iteration 70" in result.stderr and result.stdout == ""

    # Halves of full scale decide what is known; what hides under the mask is not looked at.
    mask = write_pnm(tmp_path / "mask.pgm", np.where(KNOWN, 128, 127).astype(np.uint8))
    hidden = np.where(KNOWN[:, :, None] if colour else KNOWN, pixels, 0).astype(dtype)
    run(restore, "inpaint", write_pnm(image, hidden), tmp_path / "out.ppm", "--mask", mask, *SMALL, "--threads", "3")
    filled = read_pnm(tmp_path / "out.ppm")
    assert np.array_equal(filled, dipengine.inpaint(pixels, KNOWN, **SAME).image)
    assert np.array_equal(filled[KNOWN], pixels[KNOWN]) and not np.array_equal(filled, pixels)


@pytest.mark.parametrize("words, told, reason", [
    ([], UNKNOWN, "variance"), (["--sigma", "26"], {"sigma": 26}, "discrepancy"), (["--sigma", "40"], {"sigma": 40}, "discrepancy"),
], ids=["unknown", "known", "strong"])
def test_the_host_gives_the_pixels_of_a_fit_that_stops_by_itself(restore, tmp_path, words, told, reason):
    pixels = damaged("uint8", True)
    run(restore, "denoise", write_pnm(tmp_path / "in.ppm", pixels), tmp_path / "out.ppm", "--channels", "8", "--levels", "2",
        "--iterations", "800", "--precision", "fp32", *words)
    ours = dipengine.denoise(pixels, channels=8, levels=2, iterations=800, precision="fp32", **told)
    assert ours.record["stop_reason"] == reason
    assert np.array_equal(read_pnm(tmp_path / "out.ppm"), ours.image)


def test_the_host_needs_no_python(restore):
    libraries = run("ldd", restore).stdout
    assert "libdipengine.so" in libraries and "python" not in libraries.lower()


def test_interrupted_the_host_delivers_what_there_is(restore, tmp_path):
    pixels = damaged("uint8", True)
    command = [restore, "denoise", write_pnm(tmp_path / "in.ppm", pixels), tmp_path / "out.ppm", "--channels", "8", "--levels", "2",
               "--iterations", "4000", "--stop", "fixed"]
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
    try:
        first, tenth = process.stderr.readline(), process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert "53 x 41 pixels" in first and "iteration 400 of" in tenth
    assert process.returncode == 130
    assert 400 <= int(re.search(r"(\d+) iterations, image of", rest).group(1)) < 4000
    restored = read_pnm(tmp_path / "out.ppm")
    assert restored.shape == pixels.shape and not np.array_equal(restored, pixels)


def test_the_output_is_written_beside_and_renamed(restore, tmp_path):
    image = write_pnm(tmp_path / "in.ppm", damaged("uint8", True))
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "real.ppm").write_bytes(b"old")
    os.chmod(folder / "real.ppm", 0o640)
    (folder / "link.ppm").symlink_to("real.ppm")
    inode = (folder / "real.ppm").stat().st_ino
    run(restore, "denoise", image, folder / "link.ppm", *SMALL)
    assert sorted(path.name for path in folder.iterdir()) == ["link.ppm", "real.ppm"]
    assert (folder / "link.ppm").is_symlink() and (folder / "real.ppm").stat().st_ino != inode
    assert stat.S_IMODE((folder / "real.ppm").stat().st_mode) == 0o640
    assert read_pnm(folder / "real.ppm").shape == (41, 53, 3)


def test_the_host_refuses_in_one_sentence_with_status_2(restore, tmp_path):
    pixels = damaged("uint8", True)
    image, grey = write_pnm(tmp_path / "in.ppm", pixels), write_pnm(tmp_path / "grey.pgm", pixels[:, :, 0])
    white, black = np.full((41, 53), 255, np.uint8), np.zeros((41, 53), np.uint8)
    mask, none = write_pnm(tmp_path / "mask.pgm", white), write_pnm(tmp_path / "none.pgm", black)
    small = write_pnm(tmp_path / "small.pgm", white[:-1])

    def broken(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    whole = image.read_bytes()
    out = tmp_path / "out.ppm"
    cases = {
        "needed": ["denoise", image],
        "takes denoise or inpaint": ["sharpen", image, out],
        "too many": ["denoise", image, out, out],
        "no option --fast": ["denoise", image, out, "--fast", "1"],
        "value behind": ["denoise", image, out, "--seed"],
        "whole number of at least 1": ["denoise", image, out, "--iterations", "0"],
        "whole number of at least 0": ["denoise", image, out, "--seed", "-1"],
        "takes auto or fixed": ["denoise", image, out, "--stop", "never"],
        "takes cpu or cuda": ["denoise", image, out, "--device", "tpu"],
        "takes fp32 or bf16": ["denoise", image, out, "--precision", "fp64"],
        "13 levels": ["denoise", image, out, "--levels", "13"],
        "takes --mask": ["inpaint", image, out],
        "nothing else does": ["denoise", image, out, "--mask", mask],
        "in colour": ["inpaint", image, out, "--mask", image],
        "of the image's size": ["inpaint", image, out, "--mask", small],
        "no pixel known": ["inpaint", image, out, "--mask", none],
        "cannot be read": ["denoise", tmp_path / "absent.ppm", out],
        "Is a directory": ["denoise", tmp_path, out],
        "name of its own": ["denoise", image, image],
        "an input, too": ["inpaint", image, mask, "--mask", mask],
        "cannot be written": ["denoise", image, tmp_path / "absent" / "out.ppm"],
        "not a regular file": ["denoise", image, tmp_path],
        "no binary PPM": ["denoise", broken("text.ppm", b"P3\n1 1\n255\n1 2 3\n"), out],
        "is no binary": ["denoise", broken("empty.ppm", b""), out],
        "within its header": ["denoise", broken("header.ppm", b"P6\n4 4 # no end"), out],
        "no height": ["denoise", broken("height.ppm", b"P6\n4 x\n255\n" + bytes(48)), out],
        "no width": ["denoise", broken("width.ppm", b"P6\n99999999999999999999 4\n255\n"), out],
        "no largest value": ["denoise", broken("largest.ppm", b"P6\n4 4\n65536\n" + bytes(96)), out],
        "cut off": ["denoise", broken("cut.ppm", whole[:-1]), out],
        "cut off: it holds fewer than its 16777216 x": ["denoise", broken("huge.ppm", b"P6\n16777216 16777216\n255\n"), out],
        "above its own maximum": ["denoise", broken("above.pgm", b"P5\n2 2\n99\n" + bytes([1, 2, 3, 100])), out],
    }
    for sentence, words in cases.items():
        result = run(restore, *words, check=False)
        lines = result.stderr.splitlines()
        assert result.returncode == 2 and len(lines) == 1 and sentence in lines[0] and lines[0].endswith("."), (sentence, result)
        assert result.stdout == "" and not out.exists()
    assert grey.exists() and image.read_bytes() == whole
    assert not [path for path in tmp_path.rglob("*") if path.suffix not in (".ppm", ".pgm")]
