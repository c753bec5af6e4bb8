"""What cannot be read or written is refused with one sentence, and bombs before they are decoded."""

import errno
import os
import subprocess
import sys
import tracemalloc
from importlib.util import find_spec

import numpy as np
import PIL.Image
import pytest
import pyvips
import tifffile
from image_samples import noise, png_chunk, png_header, smooth, write_png

from dipengine.errors import DependencyError, ImageError, InputError, OutputError
from dipengine.images import Image, check_writable, read_image, write_image


def assert_one_sentence(error):
    message = str(error.value)
    assert "\n" not in message and message.endswith(".") and ";" in message, message


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "gif"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.995])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    extra = {"webp": {"lossless": True}, "tif": {"compression": "tiff_deflate"}}.get(suffix, {})
    PIL.Image.fromarray(smooth((120, 160))).save(tmp_path / f"whole.{suffix}", **extra)
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    read_image(tmp_path / f"whole.{suffix}")
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(data[: max(1, int(len(data) * share))])
    with pytest.raises(ImageError, match="cut short") as error:
        read_image(cut)
    assert_one_sentence(error)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_truncated_tiff_of_64_bits_is_refused(tmp_path, compression):
    tifffile.imwrite(tmp_path / "whole.tif", noise("float64", 3, (60, 80)), photometric="rgb", compression=compression)
    data = (tmp_path / "whole.tif").read_bytes()
    read_image(tmp_path / "whole.tif")
    for share in (0.02, 0.3, 0.9, 0.995):
        (tmp_path / "cut.tif").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ImageError, match="cut short") as error:
            read_image(tmp_path / "cut.tif")
        assert_one_sentence(error)


def test_packing_that_needs_imagecodecs_says_how_to_get_it(tmp_path):
    sample = noise("float64", 1)
    picture = pyvips.Image.new_from_memory(sample, sample.shape[1], sample.shape[0], 1, "double")
    picture.tiffsave(str(tmp_path / "lzw.tif"), compression="lzw")
    if find_spec("imagecodecs") is not None:
        np.testing.assert_array_equal(read_image(tmp_path / "lzw.tif").pixels, sample)
        return
    with pytest.raises(DependencyError, match="pip install imagecodecs") as error:
        read_image(tmp_path / "lzw.tif")
    assert_one_sentence(error)


def test_64_bit_tiff_meets_the_same_refusals(tmp_path):
    sample = noise("float64", 1)[..., 0]
    tifffile.imwrite(tmp_path / "large.tif", sample)
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([sample, sample]), photometric="minisblack")
    tifffile.imwrite(tmp_path / "complex.tif", sample.astype(np.complex64))
    sample[3, 4] = np.inf
    tifffile.imwrite(tmp_path / "inf.tif", sample)
    cases = {"large.tif": "--max-pixels", "pages.tif": "2 pages", "complex.tif": "unusual kind", "inf.tif": "infinite"}
    for name, words in cases.items():
        with pytest.raises(ImageError, match=words) as error:
            read_image(tmp_path / name, max_pixels=100 if name == "large.tif" else 10_000)
        assert_one_sentence(error)


def test_a_png_with_a_flipped_bit_is_refused(tmp_path):
    write_png(tmp_path / "in.png", noise("uint8", size=(60, 60)))
    data = bytearray((tmp_path / "in.png").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "in.png").write_bytes(data)
    with pytest.raises(ImageError, match="damaged"):
        read_image(tmp_path / "in.png")


def test_missing_empty_folder_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("once upon a time, there was no image\n" * 20)
    (tmp_path / "table.csv").write_text("1,2\n3,4\n")
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>")
    os.mkfifo(tmp_path / "pipe.png")
    cases = {"absent.png": "does not exist", "empty.png": "empty", "text.png": "not an image", ".": "folder",
             "table.csv": "not an image", "drawing.svg": "not an image", "pipe.png": "regular file",
             "text.png/inside.png": "does not exist", "nul\0name.png": "cannot be opened"}
    for name, words in cases.items():
        with pytest.raises(ImageError, match=words) as error:
            read_image(f"{tmp_path}/{name}")
        assert_one_sentence(error)


def test_names_that_are_not_utf8_are_refused(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.png")
    open(name, "wb").write(b"x")
    with pytest.raises(ImageError, match="UTF-8") as error:
        read_image(name)
    assert_one_sentence(error)
    with pytest.raises(OutputError, match="UTF-8") as error:
        check_writable(name)
    assert_one_sentence(error)


def test_a_folder_is_batchs(tmp_path):
    with pytest.raises(ImageError, match="is a folder.*dipengine batch"):
        read_image(tmp_path)


def test_animations_and_pages_are_refused(tmp_path):
    frames = [PIL.Image.fromarray(smooth() // (k + 1)) for k in range(3)]
    for suffix in ("gif", "webp", "tif"):
        frames[0].save(tmp_path / f"many.{suffix}", save_all=True, append_images=frames[1:])
        with pytest.raises(ImageError, match=r"3 pages or frames.*\[page=0\].*dipengine batch"):
            read_image(tmp_path / f"many.{suffix}")


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_in_a_float_tiff_is_refused(tmp_path, value):
    sample = noise("float32", 3)
    sample[4, 5, 1] = value
    tifffile.imwrite(tmp_path / "in.tif", sample, photometric="rgb")
    with pytest.raises(ImageError, match="infinite values") as error:
        read_image(tmp_path / "in.tif")
    assert_one_sentence(error)


def test_a_bomb_is_refused_from_its_header(tmp_path):
    lines = png_chunk(b"IDAT", b"\x78\x9c" + b"\0" * 100) + png_chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(png_header(100_000, 100_000, 8, 3) + lines)
    write_png(tmp_path / "small.png", noise("uint8"))
    read_image(tmp_path / "small.png")  # so that loading libvips is not measured
    tracemalloc.start()
    with pytest.raises(ImageError, match=r"100000 x 100000 .* --max-pixels") as error:
        read_image(tmp_path / "bomb.png")
    assert_one_sentence(error)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_a_bomb_takes_neither_memory_nor_time(tmp_path):
    """In a process that may not grow by more than the 30 GB bomb needs: libvips's own memory counts too."""
    lines = png_chunk(b"IDAT", b"\x78\x9c" + b"\0" * 100) + png_chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(png_header(100_000, 100_000, 8, 3) + lines)
    script = """
import resource, sys, time
from dipengine.images import read_image
from dipengine.images.vips import load_pyvips
load_pyvips()
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
try:
    read_image(sys.argv[1])
except ValueError:
    print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "bomb.png")], capture_output=True, text=True,
                          check=True, timeout=60)
    seconds, kilobytes = map(float, done.stdout.split())
    assert seconds < 1 and kilobytes < 50_000


def test_max_pixels_is_the_largest_size_allowed(tmp_path):
    write_png(tmp_path / "in.png", noise("uint8", 3, (10, 20)))
    assert read_image(tmp_path / "in.png", max_pixels=200).width == 20
    with pytest.raises(ImageError, match="limit of 199"):
        read_image(tmp_path / "in.png", max_pixels=199)
    tifffile.imwrite(tmp_path / "deep.tif", noise("uint8", 40, (10, 20)), photometric="minisblack",
                     planarconfig="contig")
    with pytest.raises(ImageError, match="40 channels"):
        read_image(tmp_path / "deep.tif", max_pixels=1999)
    assert read_image(tmp_path / "deep.tif", max_pixels=2000).channels == 40


@pytest.mark.parametrize(
    ("name", "dtype", "channels", "alpha", "words"),
    [
        ("x.jpg", "uint16", 3, False, "JPEG holds 8 bits"),
        ("x.jpg", "uint8", 3, True, "alpha"),
        ("x.webp", "uint16", 1, False, "WebP holds 8 bits"),
        ("x.png", "float32", 3, False, "PNG holds 8 or 16 bits"),
        ("x.png", "uint8", 5, False, "5 colour channels"),
        ("x.tif", "int64", 1, False, "int64"),
        ("x.fits", "uint8", 3, True, "alpha"),
        ("x.bmp", "uint8", 3, False, "'.bmp'"),
        ("x", "uint8", 3, False, "no extension"),
        ("nowhere/x.png", "uint8", 3, False, "does not exist"),
        ("folder.png", "uint8", 3, False, "is a folder"),
        ("file.txt/x.png", "uint8", 3, False, "not a folder"),
    ],
)
def test_an_impossible_output_is_refused_early_and_late_alike(tmp_path, name, dtype, channels, alpha, words):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file.txt").touch()
    like = Image(pixels=noise(dtype, channels))
    plane = like.pixels[..., 0] if alpha else None
    before = sorted(tmp_path.rglob("*"))
    for attempt in (
        lambda: check_writable(tmp_path / name, like, alpha=alpha),
        lambda: write_image(tmp_path / name, like.pixels, like, alpha=plane),
    ):
        with pytest.raises(OutputError, match=words) as error:
            attempt()
        assert_one_sentence(error)
    assert sorted(tmp_path.rglob("*")) == before


def test_size_limits_of_the_format_count_after_upscaling(tmp_path):
    like = Image(pixels=np.zeros((2, 5000, 3), np.uint8))
    check_writable(tmp_path / "x.webp", like, scale=3)
    with pytest.raises(OutputError, match="20000 x 8"):
        check_writable(tmp_path / "x.webp", like, scale=4)


def test_a_folder_without_write_permission_is_refused(tmp_path, monkeypatch):
    def refuse(*_):  # tests may run as root, whom permissions do not stop
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match=r"not writable \(Permission denied\)") as error:
        check_writable(tmp_path / "x.png")
    assert_one_sentence(error)


def test_arrays_that_do_not_fit_together_are_refused(tmp_path):
    like = Image(pixels=noise("uint8"))
    with pytest.raises(InputError, match="height x width x channels"):
        write_image(tmp_path / "x.png", like.pixels[..., 0], like)
    with pytest.raises(InputError, match="alpha"):
        write_image(tmp_path / "x.png", like.pixels, like, alpha=like.pixels[:-1, :, 0])


def test_importing_the_package_loads_no_image_library():
    script = "import sys, dipengine.images; print([m for m in ('pyvips', 'astropy', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
