"""Value maps, measures and blending work on arrays of any library that keeps to the array API standard, CuPy's among them.

`array_api_strict` stands for the others: it wraps NumPy and refuses whatever the standard does not name, mixing with NumPy too.
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
from dipengine.tiling import TileGrid
from dipengine.tiling.blending import blended

strict = pytest.importorskip("array_api_strict")


def given_to(array):
    return strict.asarray(array)


def taken_from(array):
    assert type(array).__module__.startswith("array_api_strict")
    return np.from_dlpack(array)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int64", "uint64", "float32", "float64"])
def test_value_maps_of_another_library_are_numpys(dtype, monkeypatch):
    monkeypatch.setattr(values, "_BLOCK_ELEMENTS", 500)
    pixels = noise(dtype, 3)
    known = noise("uint8", 1)[..., 0] > 60
    expected = ValueMap.for_image(pixels, known)
    assert ValueMap.for_image(given_to(pixels), given_to(known)) == expected
    assert ValueMap.for_image(given_to(pixels), data_units=True) == ValueMap.for_image(pixels, data_units=True)
    if np.dtype(dtype).kind == "f":
        pixels[3, 4] = np.nan
    unit = expected.to_unit(given_to(pixels))
    np.testing.assert_array_equal(taken_from(unit), expected.to_unit(pixels))
    for target in (dtype, np.dtype(dtype), getattr(strict, dtype)):
        back = taken_from(expected.from_unit(unit, target))
        np.testing.assert_array_equal(back, expected.from_unit(expected.to_unit(pixels), dtype))
        assert back.dtype == dtype


def test_measures_of_another_library_are_numpys():
    image, truth = noise("uint8", 3), smooth((23, 37))
    for measure in (metrics.psnr, metrics.ssim):
        assert measure(given_to(image), given_to(truth), 255) == measure(image, truth, 255)
    assert metrics.psnr(given_to(image), given_to(image), 255) == float("inf")
    with pytest.raises(InputError, match="differ in shape"):
        metrics.psnr(given_to(image), given_to(truth[1:]), 255)


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
