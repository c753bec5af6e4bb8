"""Pages of stacks by their names, in everything that takes an image's path, and stacks as batches."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from batches import FIT, batch, images, picture, rows
from dipengine.cli.main import main
from dipengine.errors import ImageError, InputError
from dipengine.images import Image, decode, read_header, read_image, read_kernel, read_mask, reading, write_image
from dipengine.images.pages import file_and_page
from dipengine.images.raster_reading import pages_in
from dipengine.scheduling.jobs import Request
from dipengine.scheduling.sources import jobs_of
from image_samples import noise

tifffile = pytest.importorskip("tifffile")
SIZE = (20, 24)


def stack_of(path, dtype="uint16", count=3, channels=1, **more):
    """Pages of noise, each of a seed of its own."""
    pages = [noise(dtype, channels, SIZE, seed=i) for i in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    photometric = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(path, np.stack([page if channels > 1 else page[..., 0] for page in pages]), photometric=photometric, **more)
    return pages


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype, channels", [("uint8", 3), ("uint16", 1), ("float32", 1), ("float64", 1), ("float64", 3)])
def test_a_page_is_the_image_that_it_would_be_alone(folder, dtype, channels):
    pages = stack_of(folder / "s.tif", dtype, 3, channels)
    for number, pixels in enumerate(pages):
        name = f"s.tif[page={number}]"
        image = read_image(name)
        np.testing.assert_array_equal(image.pixels, pixels)
        assert image.source == name and read_header(name).source == name and read_header(Path(name)).pixels.shape == pixels.shape
        decoded = decode(name, folder, "decoded")
        np.testing.assert_array_equal(decoded.window().pixels, pixels)
        assert decoded.like.source == name and decoded.like.sha256 == image.sha256


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_frames_of_animations(folder, suffix):
    frames = pytest.importorskip("PIL.Image")
    made = [frames.fromarray(np.full((*SIZE, 3), 60 * i, np.uint8)) for i in range(3)]
    made[0].save(f"many.{suffix}", save_all=True, append_images=made[1:], **({"lossless": True} if suffix == "webp" else {}))
    for i in range(3):
        assert np.all(read_image(f"many.{suffix}[page={i}]").pixels[..., :3] == 60 * i)


def test_a_page_that_is_not_there_is_refused_in_one_sentence(folder):
    stack_of(folder / "s.tif")
    stack_of(folder / "deep.tif", "float64")
    write_image("one.png", noise("uint8"), Image(noise("uint8")))
    for name, words in (
        ("s.tif[page=3]", "pages 0 to 2"), ("deep.tif[page=3]", "pages 0 to 2"), ("one.png[page=1]", "one page, 0"),
        ("none.tif[page=1]", "none.tif does not exist"), ("s.tif[page=-1]", "does not exist"), ("s.tif", "holds 3 pages"),
        ("deep.tif", "holds 3 pages"),
    ):
        for read in (read_image, read_header, lambda name: decode(name, folder, "x")):
            with pytest.raises(ImageError, match=words.replace("[", r"\[")) as error:
                read(name)
            assert "\n" not in str(error.value)
    assert read_image("one.png[page=0]").pixels.shape == (23, 37, 3)


def test_fits_has_no_pages(folder):
    fits = pytest.importorskip("astropy.io.fits")
    fits.writeto("cube.fits", np.zeros((2, 5, 6), np.float32) + np.arange(6))
    for read in (read_image, read_header, lambda name: decode(name, folder, "x")):
        with pytest.raises(ImageError, match="one page, 0"):
            read("cube.fits[page=1]")


def test_a_file_that_is_called_so_is_a_file(folder):
    write_image("s.tif", noise("uint8", seed=1), Image(noise("uint8")))
    os.rename("s.tif", "s.tif[page=1]")
    np.testing.assert_array_equal(read_image("s.tif[page=1]").pixels, noise("uint8", seed=1))
    assert file_and_page("s.tif[page=1]") == ("s.tif[page=1]", None) and file_and_page("s.tif[page=2]") == ("s.tif", 2)


def test_what_describes_the_whole_stack_stays_there(folder):
    stack_of(folder / "s.tif", imagej=True, metadata={"axes": "ZYX", "spacing": 2.0})
    assert "images=3" in tifffile.TiffFile("s.tif").pages[0].description
    image = read_image("s.tif[page=1]")
    write_image("one.tif", image.pixels, image)
    assert "images" not in tifffile.TiffFile("one.tif").pages[0].description


def test_a_stack_is_read_to_its_end_once(folder, monkeypatch):
    stack_of(folder / "s.tif")
    reads = []
    digest = reading._digest
    monkeypatch.setattr(reading, "_digest", lambda source: reads.append(source) or digest(source))
    reading._digest_of_stack.cache_clear()
    found = {read_image(f"s.tif[page={i}]").sha256 for i in range(3)}
    assert reads == ["s.tif"] and found == {digest("s.tif")}
    stack_of(folder / "s.tif", count=4)
    assert read_image("s.tif[page=0]").sha256 == digest("s.tif") and len(reads) == 2


def test_a_single_command_takes_a_page_for_image_truth_and_mask(folder):
    pages = stack_of(folder / "s.tif", "uint8")
    mask = noise("uint8", 1, SIZE, seed=9)[..., 0] // 128 * 255
    tifffile.imwrite("masks.tif", np.stack([mask * 0, mask]), photometric="minisblack")
    np.testing.assert_array_equal(read_mask("masks.tif[page=1]", SIZE), mask > 0)
    words = ["inpaint", "s.tif[page=2]", "-o", "out.tif", "--mask", "masks.tif[page=1]", "--truth", "s.tif[page=2]", *FIT, "--quiet",
             "--record", "r.json"]
    assert main(words) == 0
    np.testing.assert_array_equal(read_image("out.tif").pixels[mask > 0], pages[2][mask > 0])
    assert json.loads(Path("r.json").read_text())["input"]["source"] == "s.tif[page=2]"
    assert main([*words[:3], "s.tif", *words[4:]]) == 2  # the stack itself would be overwritten
    assert main([*words, "--tile", "16,4"]) == 0
    np.testing.assert_array_equal(read_image("out.tif").pixels[mask > 0], pages[2][mask > 0])


def test_tiles_of_one_page_are_not_taken_for_those_of_another(folder, monkeypatch):
    from dipengine.tiling import command

    stack_of(folder / "s.tif", "uint8")
    stack_of(folder / "m.tif", "uint8")
    words = ["inpaint", "s.tif[page=0]", "-o", "out.tif", "--mask", "m.tif[page=0]", "--tile", "16,4", *FIT, "--quiet"]
    other = [word.replace("page=0", "page=2") for word in words]
    assert main([*other[:3], "whole.tif", *other[4:]]) == 0
    restore, fitted = command.restore_tile, []

    def interrupted(tiled, index, **more):
        if len(fitted) == 1:
            raise KeyboardInterrupt
        fitted.append(index)
        restore(tiled, index, **more)

    for begun in (words, [other[0], words[1], *other[2:]], [words[0], other[1], *words[2:]]):
        fitted.clear()
        monkeypatch.setattr(command, "restore_tile", interrupted)
        assert main(begun) == 130
        monkeypatch.setattr(command, "restore_tile", restore)
        assert main(other) == 0
        assert Path("out.tif").read_bytes() == Path("whole.tif").read_bytes()


def test_a_row_that_names_another_page_is_another_image(folder):
    stack_of(folder / "s.tif", "uint8")
    for page in (0, 2):
        Path("jobs.csv").write_text(f"input,output\ns.tif[page={page}],x.tif\n")
        assert batch(source="jobs.csv") == 0
        assert json.loads(Path("out/x.tif.json").read_text())["input"]["source"].endswith(f"[page={page}]")
    assert rows()["x.tif"]["attempts"] == 2
    Path("man").mkdir()
    Path("man/jobs.csv").write_text("input\n../s.tif[page=0]\n../s.tif[page=1]\n")
    assert [job.output for job in jobs_of("man/jobs.csv", folder / "out", Request())] == ["s_p0000.tif", "s_p0001.tif"]


def test_stacks_of_mixed_pages_and_what_is_no_stack(folder):
    pages = [noise("float64", 1, SIZE)[..., 0], noise("uint8", 1, SIZE)[..., 0], noise("uint8", 3, SIZE)]
    with tifffile.TiffWriter("mixed.tif") as file:
        for page in pages:
            file.write(page, photometric="rgb" if page.ndim == 3 else "minisblack", contiguous=False)
    for number, page in enumerate(pages):
        np.testing.assert_array_equal(read_image(f"mixed.tif[page={number}]").pixels.squeeze(), page)
    with pytest.raises(ImageError, match="no page 3"):
        read_image("mixed.tif[page=3]")
    Path("svg.tif").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    assert pages_in("svg.tif") == 1 and pages_in("mixed.tif") == 3


def test_a_kernel_may_be_a_page(folder):
    kernels = np.random.default_rng(0).random((2, 5, 5)).astype("float32")
    tifffile.imwrite("k.tif", kernels, photometric="minisblack")
    np.testing.assert_allclose(read_kernel("k.tif[page=1]"), kernels[1] / kernels[1].sum(), rtol=1e-6)
    kernels[1, 2, 2] = np.nan
    tifffile.imwrite("k.tif", kernels, photometric="minisblack")
    with pytest.raises(InputError, match="holds NaN"):
        read_kernel("k.tif[page=1]")


def test_jobs_of_stacks(folder):
    stack_of(folder / "in" / "deep" / "s.tif")
    stack_of(folder / "in" / "deep" / "one.tif", count=1)
    write_image("in/a.png", noise("uint8"), Image(noise("uint8")))
    (folder / "in" / "broken.tif").write_bytes(b"II*\0nonsense")
    os.mkfifo("in/pipe.tif")  # nobody would ever write to it
    outputs = ["a.png", "broken.tif", "deep/one.tif", "deep/s_p0000.tif", "deep/s_p0001.tif", "deep/s_p0002.tif", "pipe.tif"]
    jobs = jobs_of("in", folder / "out", Request())
    assert [job.output for job in jobs] == outputs
    assert [Path(job.input).name for job in jobs[3:6]] == [f"s.tif[page={i}]" for i in range(3)]
    assert [job.output for job in jobs_of("in/deep/s.tif", folder / "out", Request(), "png")] == [f"s_p000{i}.png" for i in range(3)]
    assert [job.output for job in jobs_of("in/deep/s.tif[page=1]", folder / "out", Request())] == ["s_p0001.tif"]
    Path("jobs.csv").write_text("input,output\nin/deep/s.tif[page=2],\nin/deep/s.tif[page=0],x.tif\n")
    assert [job.output for job in jobs_of("jobs.csv", folder / "out", Request())] == ["in/deep/s_p0002.tif", "x.tif"]
    after = [job.after for job in jobs_of(["in/deep/s.tif", "in/a.png"], folder / "out", Request(), in_order=True)]
    assert after == [None, None, "deep/s_p0000.tif", "deep/s_p0001.tif"]
    with pytest.raises(InputError, match="would be overwritten"):
        Path("jobs.csv").write_text("input,output\nin/deep/s.tif[page=2],in/deep/s.tif\n")
        jobs_of("jobs.csv", folder, Request())


def test_a_batch_of_stacks_has_the_bits_of_their_pages_as_files(folder):
    pages = [np.clip(page // 3 + 60, 0, 255).astype(np.uint8) for page in stack_of(folder / "s.tif", "uint8")]
    tifffile.imwrite("s.tif", np.stack([page[..., 0] for page in pages]), photometric="minisblack")
    Path("in").mkdir()
    for i, page in enumerate(pages):
        write_image(f"in/s_p000{i}.tif", page, Image(page))
    assert batch(source="s.tif") == 0 and batch(source="in", out="alone") == 0
    assert len(images()) == 3
    for name in images():
        np.testing.assert_array_equal(read_image(f"out/{name}").pixels, read_image(f"alone/{name}").pixels)
    assert batch(source="s.tif") == 0
    assert [row["attempts"] for row in rows().values()] == [1, 1, 1]
    stack_of(folder / "s.tif", "uint8", 4)  # another one: all of it is done again, and a page more
    assert batch("--warm", "previous", source="s.tif") == 0
    assert len(images()) == 4 and rows()["s_p0002.tif"]["attempts"] == 2
    assert json.loads(Path("out/s_p0001.tif.json").read_text())["init_from"] is not None


def test_pages_of_one_stack_may_be_fitted_at_once_and_one_may_fail(folder):
    picture(folder / "in" / "a.png", 20, 24)
    pages = stack_of(folder / "in" / "s.tif", "float32")
    pages[1][:] = np.nan
    tifffile.imwrite("in/s.tif", np.stack([page[..., 0] for page in pages]), photometric="minisblack")
    assert batch("--workers", "2") == 1
    assert set(images()) == {"a.png", "s_p0000.tif", "s_p0002.tif"}
    assert "no known pixel" in rows()["s_p0001.tif"]["error"]
