"""Value maps, measures and blending work on arrays of any library that keeps to the array API standard, CuPy's among them.

`array_api_strict` stands for the others: it wraps NumPy and refuses whatever the standard does not name, mixing with NumPy too.
Torch's tensors, which keep to it in part, go the same ways.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_samples import noise, smooth

from dipengine.errors import InputError
from dipengine.fitting import metrics
from dipengine.images import ValueMap, values
from dipengine.images.namespaces import dtype_in, integers
from dipengine.noise.anscombe import Anscombe
from dipengine.noise.light import local_light, relative_noise
from dipengine.noise.sensor import Sensor
from dipengine.tiling import TileGrid
from dipengine.tiling.blending import blended

strict = pytest.importorskip("array_api_strict")
torch = pytest.importorskip("torch")


def given_to(array, xp=strict):
    return xp.asarray(array)


def taken_from(array, xp=strict):
    assert type(array).__module__.partition(".")[0] == xp.__name__
    return np.from_dlpack(array)


@pytest.mark.parametrize("xp", [strict, torch], ids=["strict", "torch"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int64", "uint64", "float32", "float64"])
def test_value_maps_of_another_library_are_numpys(dtype, xp, monkeypatch):
    monkeypatch.setattr(values, "_BLOCK_ELEMENTS", 500)
    pixels = noise(dtype, 3)
    known = noise("uint8", 1)[..., 0] > 60
    expected = ValueMap.for_image(pixels, known)
    assert ValueMap.for_image(given_to(pixels, xp), given_to(known, xp)) == expected
    assert ValueMap.for_image(given_to(pixels, xp), data_units=True) == ValueMap.for_image(pixels, data_units=True)
    if np.dtype(dtype).kind == "f":
        pixels[3, 4] = np.nan
    unit = expected.to_unit(given_to(pixels, xp))
    np.testing.assert_array_equal(taken_from(unit, xp), expected.to_unit(pixels))
    for target in (dtype, np.dtype(dtype), getattr(xp, dtype)):
        back = taken_from(expected.from_unit(unit, target), xp)
        np.testing.assert_array_equal(back, expected.from_unit(expected.to_unit(pixels), dtype))
        assert back.dtype == dtype


@pytest.mark.parametrize("xp", [strict, torch], ids=["strict", "torch"])
def test_measures_of_another_library_are_numpys(xp):
    image, truth = noise("uint8", 3), smooth((23, 37))
    for measure in (metrics.psnr, metrics.ssim):
        assert measure(given_to(image, xp), given_to(truth, xp), 255) == pytest.approx(measure(image, truth, 255), rel=1e-12)
        known = noise("uint8", 1)[..., 0] > 2
        expected = measure(image, truth, 255, known)
        assert measure(given_to(image, xp), given_to(truth, xp), 255, given_to(known, xp)) == pytest.approx(expected, rel=1e-12)
        assert expected != measure(image, truth, 255)
    assert metrics.psnr(given_to(image, xp), given_to(image, xp), 255) == float("inf")
    with pytest.raises(InputError, match="differ in shape"):
        metrics.psnr(given_to(image, xp), given_to(truth[1:], xp), 255)


@pytest.mark.parametrize("xp", [strict, torch], ids=["strict", "torch"])
def test_noise_of_another_library_is_numpys(xp):
    sensor = Sensor(2.0, 10.0, 1.5)
    curve, data = Anscombe(sensor), noise("float64", 2, (30, 20)) * 400 - 50
    known = noise("uint8", 1, (30, 20))[..., 0] > 60
    stabilised, light = curve.forward(data), local_light(data, known)
    np.testing.assert_allclose(taken_from(curve.forward(given_to(data, xp)), xp), stabilised, rtol=1e-15)
    np.testing.assert_array_equal(taken_from(curve.inverse(given_to(stabilised, xp)), xp), curve.inverse(stabilised))
    np.testing.assert_allclose(taken_from(curve.variance(given_to(light, xp)), xp), curve.variance(light), rtol=1e-12)
    np.testing.assert_array_equal(taken_from(local_light(given_to(data, xp), given_to(known, xp)), xp), light)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(data * known[:, :, None], [(2, 2), (2, 2), (0, 0)]), (5, 5), (0, 1))
    counts = np.lib.stride_tricks.sliding_window_view(np.pad(known * 1.0, 2), (5, 5)).sum((2, 3))
    np.testing.assert_allclose(light, windows.sum((3, 4)) / np.maximum(counts, 1)[:, :, None], rtol=1e-9, atol=1e-9)
    expected = relative_noise(sensor, data, known)
    assert relative_noise(sensor, given_to(data, xp), given_to(known, xp)) == pytest.approx(expected, rel=1e-12)


def test_blending_of_another_library_is_numpys():
    pixels = noise("float64", 2, (90, 70))
    grid = TileGrid.of(90, 70, 40, 8, step=8)
    of_numpy = blended(grid, 90, 70, 2, lambda tile, rows: pixels[tile.rows, tile.columns][rows])
    strictly = blended(
        grid, 90, 70, 2, lambda tile, rows: given_to(pixels[tile.rows, tile.columns][rows].copy()), xp=strict
    )
    for (rows, expected), (same, got) in zip(of_numpy, strictly, strict=True):
        assert rows == same
        np.testing.assert_array_equal(taken_from(got), expected)
        np.testing.assert_allclose(expected, pixels[rows], rtol=1e-12)


def test_dtypes_by_any_name():
    for dtype in ("uint16", np.uint16, np.dtype("uint16"), strict.uint16):
        assert dtype_in(strict, dtype) == strict.uint16
        assert integers(strict, dtype_in(strict, dtype))
    assert not integers(strict, strict.float32) and not integers(np, np.dtype("float32"))


@settings(deadline=None)
@given(st.integers(11, 40), st.integers(11, 40), st.integers(1, 4), st.sampled_from([1.0, 255.0, 65535.0]), st.integers(0, 99))
def test_ssim_is_scikit_images(height, width, channels, data_range, seed):
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    rng = np.random.default_rng(seed)
    truth = rng.random((height, width, channels)) * data_range
    image = np.clip(truth + rng.normal(0, data_range / 9, truth.shape), 0, data_range)
    expected = structural_similarity(
        image, truth, data_range=data_range, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert metrics.ssim(image, truth, data_range) == pytest.approx(expected, abs=1e-9)
    assert metrics.ssim(image[:10], truth[:10], data_range) is None
    assert metrics.ssim(truth, truth, data_range) == pytest.approx(1)
