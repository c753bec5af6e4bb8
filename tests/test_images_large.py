"""Images decoded into raw files and written from them: the same values, metadata and bytes as by way of memory."""

import gzip

import numpy as np
import pytest
import tifffile
from astropy.io import fits
from image_samples import noise
from test_images_fits import sky_header

from dipengine.errors import ImageError, OutputError
from dipengine.images import (
    Image, Metadata, decode, large, raw, read_header, read_image, read_large_mask, read_mask, write_image, write_image_from,
)


@pytest.fixture(autouse=True)
def narrow_bands(monkeypatch):
    """A few rows at a time, so that small samples take many."""
    monkeypatch.setattr(raw, "_BAND_BYTES", 1000)


def picture(channels=3, dtype="uint8", orientation=1, alpha=False):
    """An image and its file's metadata."""
    pixels = noise(dtype, channels)
    fields = {"icc-profile-data": b"\0" * 16 + b"RGB " + b"\0" * 108, "png-comment-0-Title": "a title"}
    like = Image(pixels, metadata=Metadata(orientation=orientation, resolution=(11.0, 7.0), fields=fields))
    return like, noise(dtype, 1, seed=1)[..., 0] if alpha else None


CASES = [
    ("png", "uint8", 3, False, 1), ("png", "uint16", 1, True, 6), ("png", "uint8", 3, True, 3), ("jpg", "uint8", 3, False, 8),
    ("webp", "uint8", 3, True, 1), ("tif", "float32", 3, False, 7), ("tif", "uint16", 3, True, 5), ("tif", "int32", 5, False, 2),
    ("tif", "float64", 1, False, 4), ("fits", "uint16", 1, False, 1), ("fits", "int8", 3, False, 1),
    ("fits.gz", "float32", 3, False, 1),
]


@pytest.mark.parametrize("ending, dtype, channels, alpha, orientation", CASES)
def test_a_file_comes_back_as_by_way_of_memory(tmp_path, ending, dtype, channels, alpha, orientation):
    like, transparency = picture(channels, dtype, orientation, alpha)
    source = tmp_path / f"in.{ending}"
    write_image(source, like.pixels, like, alpha=transparency)
    whole, decoded = read_image(source), decode(source, tmp_path, "decoded")
    header = read_header(source)
    for image in (decoded.like, header):
        assert (image.pixels.shape, image.dtype, image.format) == (whole.pixels.shape, whole.dtype, whole.format)
        assert (image.alpha is None) == (whole.alpha is None) and image.metadata.fields == whole.metadata.fields
        assert image.metadata.orientation == whole.metadata.orientation and image.metadata.resolution == whole.metadata.resolution
    assert decoded.like.sha256 == whole.sha256
    np.testing.assert_array_equal(np.concatenate([band.pixels for _, band in decoded.bands()]), whole.pixels)
    part = decoded.window(slice(5, 12), slice(3, 30))
    np.testing.assert_array_equal(part.pixels, whole.pixels[5:12, 3:30])
    if whole.alpha is not None:
        np.testing.assert_array_equal(part.alpha, whole.alpha[5:12, 3:30])
    target = tmp_path / f"out.{ending}"
    write_image(target, whole.pixels, whole, alpha=whole.alpha)
    by_memory = target.read_bytes()
    write_image_from(target, decoded.stored, decoded.like, alpha=whole.alpha is not None)
    assert target.read_bytes() == by_memory


@pytest.mark.parametrize("kind", ["plain", "extension", "compressed", "packed", "scaled", "blank", "cube"])
def test_fits_of_every_kind(tmp_path, kind):
    sample = noise("float32", 1)[..., 0]
    sample[3:6, 2:9] = np.nan
    header, other = sky_header(), fits.ImageHDU(np.arange(12.0).reshape(3, 4))
    path = tmp_path / ("in.fits.gz" if kind == "packed" else "in.fits")
    if kind == "cube":
        sample = np.moveaxis(noise("uint16", 4), -1, 0)[None]
    if kind in ("scaled", "blank"):
        hdu = fits.PrimaryHDU(noise("int16", 1)[..., 0], header)
        hdu.header["BLANK"] = int(hdu.data[0, 0])
        if kind == "scaled":
            hdu.header["BSCALE"], hdu.header["BZERO"] = 0.5, 10.0
        hdus = [hdu, other]
    elif kind == "extension":
        hdus = [fits.PrimaryHDU(), fits.ImageHDU(sample, header), other]
    elif kind == "compressed":
        hdus = [fits.PrimaryHDU(), fits.CompImageHDU(noise("int16", 1)[..., 0], header)]
    else:
        hdus = [fits.PrimaryHDU(sample, header), other]
    fits.HDUList(hdus).writeto(path)
    whole, decoded = read_image(path), decode(path, tmp_path, "decoded")
    everything = decoded.window()
    assert everything.dtype == whole.dtype == read_header(path).dtype
    np.testing.assert_array_equal(everything.pixels, whole.pixels)
    assert (everything.known is None) == (whole.known is None) == (decoded.like.known is None)
    if whole.known is not None:
        np.testing.assert_array_equal(everything.known, whole.known)
    assert not (tmp_path / "decoded.fits").exists()  # what was unpacked
    for scale in (1, 2):
        pixels = whole.pixels.repeat(scale, 0).repeat(scale, 1)
        write_image(tmp_path / "memory.fits", pixels, whole, scale=scale)
        stored = large._dumped(pixels, tmp_path / "enlarged.raw", 1)
        write_image_from(tmp_path / "disk.fits", stored, decoded.like, scale=scale)
        assert (tmp_path / "disk.fits").read_bytes() == (tmp_path / "memory.fits").read_bytes()


def test_tiff_of_64_bits(tmp_path):
    sample = noise("float64", 3)
    tifffile.imwrite(tmp_path / "in.tif", sample, photometric="rgb")
    decoded = decode(tmp_path / "in.tif", tmp_path, "decoded")
    np.testing.assert_array_equal(decoded.window().pixels, sample)
    assert read_header(tmp_path / "in.tif").pixels.shape == sample.shape


@pytest.mark.parametrize("dtype, channels, alpha, orientation", [("uint16", 3, True, 6), ("float32", 1, False, 1)])
def test_an_image_in_memory_becomes_one_in_files(tmp_path, dtype, channels, alpha, orientation):
    like, transparency = picture(channels, dtype, orientation, alpha)
    known = noise("uint8", 1)[..., 0] > 100
    dumped = large.dump(Image(like.pixels, transparency, known, metadata=like.metadata), tmp_path, "x").window()
    np.testing.assert_array_equal(dumped.pixels, like.pixels)
    np.testing.assert_array_equal(dumped.known, known)
    if alpha:
        np.testing.assert_array_equal(dumped.alpha, transparency)


def test_unusable_files_are_refused_as_by_way_of_memory(tmp_path):
    sample = noise("float32", 1)[..., 0]
    write_image(tmp_path / "whole.png", noise("uint8"), Image(noise("uint8")))
    blob = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(blob[: len(blob) // 2])
    tifffile.imwrite(tmp_path / "nan.tif", np.full_like(sample, np.nan))
    tifffile.imwrite(tmp_path / "inf.tif", np.where(np.arange(37) == 3, np.float32(np.inf), sample))
    fits.PrimaryHDU(np.where(sample > 0, np.inf, sample)).writeto(tmp_path / "inf.fits")
    fits.PrimaryHDU(np.full_like(sample, np.nan)).writeto(tmp_path / "nan.fits")
    (tmp_path / "bomb.fits.gz").write_bytes(gzip.compress(b"SIMPLE  =" + bytes(10000)))
    for name in ("cut.png", "nan.tif", "inf.tif", "inf.fits", "nan.fits", "bomb.fits.gz", "none.png"):
        with pytest.raises(ImageError) as here:
            decode(tmp_path / name, tmp_path, "decoded")
        with pytest.raises(ImageError) as there:
            read_image(tmp_path / name)
        assert str(here.value) == str(there.value)
    with pytest.raises(ImageError, match="max_pixels"):
        read_header(tmp_path / "whole.png", max_pixels=100)


def test_what_a_format_does_not_hold_is_refused(tmp_path):
    stored = large._dumped(noise("float32"), tmp_path / "x.raw", 1)
    with pytest.raises(OutputError, match="float32"):
        write_image_from(tmp_path / "out.png", stored, Image(noise("float32")))
    assert not (tmp_path / "out.png").exists()


def mask_files(folder):
    """Masks of every kind that means something of its own, as paths."""
    white = (noise("uint8", 1)[..., 0] > 100) * np.uint8(255)
    grey = white[..., None]
    write_image(folder / "grey.png", grey, Image(grey))
    write_image(folder / "half.png", np.where(grey, 128, 127).astype(np.uint8), Image(grey))
    write_image(folder / "alone.png", np.zeros((23, 37, 3), np.uint8), Image(grey), alpha=white)
    colours = noise("uint8", 3)
    write_image(folder / "both.png", colours, Image(colours), alpha=white)
    tifffile.imwrite(folder / "unit.tif", (white / 255).astype("float32"))
    tifffile.imwrite(folder / "wide.tif", white.astype("float32") * 3)
    with_nan = white.astype("float32")
    with_nan[4] = np.nan
    fits.PrimaryHDU(with_nan).writeto(folder / "nan.fits")
    return sorted([*folder.glob("*.png"), *folder.glob("*.tif"), *folder.glob("*.fits")])


@pytest.mark.parametrize("invert", [False, True])
def test_masks_mean_what_they_mean_in_memory(tmp_path, invert):
    found = mask_files(tmp_path)
    assert len(found) == 7
    for path in found:
        known = read_large_mask(path, (23, 37), tmp_path, "mask", invert=invert)
        np.testing.assert_array_equal(known.read()[..., 0].astype(bool), read_mask(path, (23, 37), invert=invert), str(path))


def test_masks_of_nothing_or_another_size_are_refused(tmp_path):
    black = np.zeros((23, 37, 1), np.uint8)
    write_image(tmp_path / "black.png", black, Image(black))
    for shape, words in (((23, 37), "no known pixel"), ((37, 23), "37 x 23")):
        with pytest.raises(ImageError, match=words):
            read_large_mask(tmp_path / "black.png", shape, tmp_path, "mask")
