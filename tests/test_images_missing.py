"""Pixels without a value, in files, arrays, masks and truths: left out of the fit, filled in, and left out of what is measured."""

import numpy as np
import pytest

import dipengine
from conftest import TINY, synthetic_picture
from dipengine.errors import ImageError
from dipengine.fitting import metrics
from dipengine.images import Image, Metadata, decode, from_array, read_image, write_image
from image_samples import noise

tifffile = pytest.importorskip("tifffile")
KNOWN = np.ones((23, 37), bool)
KNOWN[3:6, 2:9] = KNOWN[0, 0] = KNOWN[22, 36] = False
FIT = {**TINY, "iterations": 4}
FIT.pop("threads", None)  # which an engine decides


def holed(dtype="float32", channels=3):
    """Noise, NaN in one channel or the other of what is not known."""
    pixels = noise(dtype, channels)
    rows, columns = np.nonzero(~KNOWN)
    pixels[rows, columns, np.arange(len(rows)) % channels] = np.nan
    return pixels


@pytest.mark.parametrize("dtype", ["float32", "float64"])  # of 64 bits another library reads it
@pytest.mark.parametrize("channels, alpha, orientation", [(1, False, 1), (3, False, 1), (3, True, 1), (3, False, 6)])
def test_nan_in_a_float_tiff_is_missing(tmp_path, dtype, channels, alpha, orientation):
    pixels = holed(dtype, channels)
    transparency = noise(dtype, 1, seed=1)[..., 0] if alpha else None
    write_image(tmp_path / "in.tif", pixels, Image(pixels, metadata=Metadata(orientation=orientation)), alpha=transparency)
    whole, decoded = read_image(tmp_path / "in.tif"), decode(tmp_path / "in.tif", tmp_path, "decoded")
    for image in (whole, decoded.window()):
        np.testing.assert_array_equal(image.known, KNOWN)
        np.testing.assert_array_equal(image.pixels, pixels)
    np.testing.assert_array_equal(decoded.window(slice(2, 7), slice(1, 5)).known, KNOWN[2:7, 1:5])
    assert decoded.like.known is not None


def test_a_float_tiff_without_nan_has_no_file_of_known_pixels(tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", noise("float32", 1)[..., 0])
    assert read_image(tmp_path / "in.tif").known is None and decode(tmp_path / "in.tif", tmp_path, "decoded").known is None
    assert not (tmp_path / "decoded.known").exists()


@pytest.mark.parametrize("first", [0, 11, 22])
def test_the_first_missing_pixel_may_come_late(tmp_path, monkeypatch, first):
    monkeypatch.setattr("dipengine.images.raw._BAND_BYTES", 1000)  # a few rows at a time
    pixels = noise("float32", 1)
    pixels[first, 5] = np.nan
    tifffile.imwrite(tmp_path / "in.tif", pixels[..., 0])
    known = decode(tmp_path / "in.tif", tmp_path, "decoded").window().known
    np.testing.assert_array_equal(known, np.isfinite(pixels[..., 0]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_transparency_has_values_everywhere(tmp_path, bad):
    alpha = noise("float32", 1)[..., 0]
    alpha[3, 4] = bad
    pixels = noise("float32", 3)
    write_image(tmp_path / "in.tif", pixels, Image(pixels), alpha=alpha)
    for refused in (
        lambda: read_image(tmp_path / "in.tif"), lambda: decode(tmp_path / "in.tif", tmp_path, "decoded"),
        lambda: from_array(np.dstack([pixels, alpha]), alpha=True),
    ):
        with pytest.raises(ImageError, match="alpha channel of .* holds NaN"):
            refused()


@pytest.mark.parametrize("axes", ["HW", "HWC", "CHW"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_nan_in_an_array_is_missing(axes, dtype):
    pixels = holed(dtype, 1 if axes == "HW" else 3)
    given = {"HW": pixels[..., 0], "HWC": pixels, "CHW": np.moveaxis(pixels, -1, 0)}[axes]
    np.testing.assert_array_equal(from_array(given, axes)[0].known, KNOWN)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_what_a_masked_array_masks_is_missing(dtype):
    hidden = np.zeros((23, 37, 3), bool)
    hidden[~KNOWN, 1] = True
    pixels = noise(dtype, 3)
    if dtype == "float32":
        pixels[hidden] = np.inf  # nobody's business
    image, back = from_array(np.ma.MaskedArray(pixels, hidden))
    np.testing.assert_array_equal(image.known, KNOWN)
    np.testing.assert_array_equal(image.pixels[KNOWN], pixels[KNOWN])
    assert type(back(np.zeros_like(pixels))) is np.ndarray
    assert from_array(np.ma.MaskedArray(noise(dtype, 3)))[0].known is None
    # A mask of transparency says nothing: it is returned as it came.
    alpha = noise(dtype, 1, seed=1)
    for over_alpha in (hidden[..., :1], ~hidden[..., :1], np.ones_like(hidden[..., :1])):
        four = from_array(np.ma.MaskedArray(np.dstack([pixels, alpha]), np.dstack([hidden, over_alpha])), alpha=True)[0]
        np.testing.assert_array_equal(four.known, KNOWN)
        np.testing.assert_array_equal(four.alpha, alpha[..., 0])


def test_nan_outside_of_the_mask_of_a_masked_array_is_missing_too():
    pixels = np.float32(synthetic_picture(23, 37))
    pixels[10, 10, 0] = np.nan
    masked = np.ma.MaskedArray(pixels, np.broadcast_to(~KNOWN[:, :, None], pixels.shape))
    known = KNOWN.copy()
    known[10, 10] = False
    np.testing.assert_array_equal(from_array(masked)[0].known, known)
    np.testing.assert_array_equal(from_array(np.ma.MaskedArray(pixels))[0].known, np.isfinite(pixels).all(axis=2))
    assert np.isfinite(dipengine.inpaint(masked, value_range=(0, 1), **FIT).image).all()


def test_the_fit_is_that_of_a_mask():
    """NaN, a masked array and a mask say the same, and come to the same bits."""
    pixels = np.float32(synthetic_picture(23, 37)) * 7 - 2
    masked = np.ma.MaskedArray(pixels, np.broadcast_to(~KNOWN[:, :, None], pixels.shape))
    expected = dipengine.denoise(pixels, mask=KNOWN, **FIT)
    for given in (np.where(KNOWN[:, :, None], pixels, np.float32(np.nan)), masked):
        result = dipengine.denoise(given, **FIT)
        np.testing.assert_array_equal(result.image, expected.image)
        assert np.isfinite(result.image).all() and type(result.image) is np.ndarray
        filled = dipengine.inpaint(given, **FIT)
        np.testing.assert_array_equal(filled.image[KNOWN], pixels[KNOWN])
        assert filled.record["parameters"]["missing_fraction"] == pytest.approx(1 - KNOWN.mean())


def test_an_engine_is_sent_what_is_missing():
    given = np.where(KNOWN[:, :, None], np.float32(synthetic_picture(23, 37)), np.float32(np.nan))
    with dipengine.Engine(workers=1, threads=1) as engine:
        results = engine.submit(given, truth=given, **FIT), engine.submit(given, "superres", factor=2, **FIT)
        results = [result.result(timeout=120) for result in results]
    alone = dipengine.denoise(given, truth=given, **FIT), dipengine.super_resolve(given, 2, **FIT)
    for result, expected in zip(results, alone):
        np.testing.assert_array_equal(result.image, expected.image)
    assert results[0].record["psnr"] == alone[0].record["psnr"] > 0


def test_a_mask_without_a_value_is_not_white():
    mask = np.where(KNOWN, 200.0, np.nan)
    picture = np.rint(synthetic_picture(23, 37) * 255).astype(np.uint8)
    np.testing.assert_array_equal(dipengine.inpaint(picture, mask, **FIT).image, dipengine.inpaint(picture, KNOWN, **FIT).image)
    masked = np.ma.MaskedArray(np.full(KNOWN.shape, 255, np.uint8), ~KNOWN)
    np.testing.assert_array_equal(dipengine.inpaint(picture, masked, **FIT).image, dipengine.inpaint(picture, KNOWN, **FIT).image)


def test_measures_pass_over_what_the_truth_misses():
    truth = np.float64(synthetic_picture(23, 37))
    image = truth + np.random.default_rng(0).normal(0, 0.1, truth.shape)
    holed = np.where(KNOWN[:, :, None], truth, np.nan)
    error = ((image - truth)[KNOWN] ** 2).mean()
    assert metrics.psnr(image, holed, 1.0, KNOWN) == pytest.approx(10 * np.log10(1 / error), abs=1e-12)
    assert metrics.psnr(truth, holed, 1.0, KNOWN) == float("inf")
    similarity = pytest.importorskip("skimage.metrics").structural_similarity
    maps = similarity(image, truth, data_range=1.0, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                      full=True)[1]
    counted = [maps[y, x].mean() for y in range(5, 18) for x in range(5, 32) if KNOWN[y - 5 : y + 6, x - 5 : x + 6].all()]
    assert 0 < len(counted) < 13 * 27
    assert metrics.ssim(image, holed, 1.0, KNOWN) == pytest.approx(np.mean(counted), abs=1e-9)
    nowhere = KNOWN.copy()
    nowhere[::10] = False
    assert metrics.ssim(image, holed, 1.0, nowhere) is None


def test_a_restoration_is_measured_where_the_truth_has_values():
    truth = np.float32(synthetic_picture(23, 37))
    result = dipengine.denoise(truth, truth=np.where(KNOWN[:, :, None], truth, np.float32(np.nan)), **FIT)
    whole = dipengine.denoise(truth, truth=truth, **FIT)
    error = ((result.image.astype(np.float64) - truth)[KNOWN] ** 2).mean()
    assert result.record["psnr"] == pytest.approx(10 * np.log10(result.record["psnr_peak"] ** 2 / error), abs=1e-9)
    assert result.record["psnr"] != whole.record["psnr"] and result.record["ssim"] != whole.record["ssim"]
    assert len(result.history.psnr) == len(whole.history.psnr) and all(np.isfinite(value) for _, value in result.history.psnr)
