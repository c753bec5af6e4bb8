"""Denoising with a known sensor: options, value map, stopping, any input; what it is worth is measured in bench/sensor.py."""

import json

import numpy as np
import pytest
import torch

import dipengine
from conftest import TINY, synthetic_picture
from dipengine.errors import InputError

SENSOR = {"noise": "poisson-gaussian", "gain": 2.0, "offset": 100.0, "read_noise": 1.5}


@pytest.fixture
def clean() -> np.ndarray:
    """Data units, float64 [40, 52, 1]: black level 100, up to 30 electrons."""
    picture = synthetic_picture(40, 52, 1)
    return 100 + 15 * picture / picture.max()


@pytest.fixture
def counts(clean) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.poisson(2 * (clean - 100)) / 2 + 100 + rng.normal(0, 1.5, clean.shape)


@pytest.mark.parametrize("data_term", ["stabilised", "likelihood"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_any_kind_of_image_comes_back_as_it_was(counts, data_term, dtype):
    image = np.rint(counts).astype(dtype)
    result = dipengine.denoise(image, data_term=data_term, **SENSOR, **TINY)
    assert result.image.dtype == dtype and result.image.shape == image.shape
    assert image.min() - 1 <= result.image.astype(float).mean() <= image.max()
    parameters = result.record["parameters"]
    assert {name: parameters[name] for name in SENSOR} == SENSOR and parameters["data_term"] == data_term


def test_integers_of_any_width_are_the_same_counts(counts):
    narrow, wide = (dipengine.denoise(np.rint(counts).astype(t), **SENSOR, **TINY).image for t in (np.uint8, np.uint16))
    np.testing.assert_array_equal(narrow, wide)


@pytest.mark.parametrize("data_term", ["stabilised", "likelihood"])
@pytest.mark.parametrize("peak, perturbation", [(15, 1 / 20), (400, 1 / 30)])
def test_strong_noise_chooses_the_authors_stronger_perturbation(data_term, peak, perturbation):
    """Noise over the light's range: sqrt(9) / 15 is as strong as sigma 50 of 255, sqrt(250) / 400 is not."""
    electrons = np.random.default_rng(0).poisson(peak * np.clip(synthetic_picture(40, 52), 0.1, 1)).astype(float)
    result = dipengine.denoise(electrons, noise="poisson", gain=1, data_term=data_term, **TINY)
    assert result.record["parameters"]["perturbation"] == perturbation


@pytest.mark.parametrize("data_term", ["stabilised", "likelihood"])
def test_the_range_begins_a_read_noise_below_the_black_level(counts, data_term):
    counts[0, 0] = 90.0
    values = dipengine.denoise(counts, data_term=data_term, **SENSOR, **TINY).record["value_map"]
    assert values["low"] == 98.5 and values["high"] == counts.max()
    given = dipengine.denoise(counts, data_term=data_term, value_range=(90, 200), **SENSOR, **TINY).record["value_map"]
    assert (given["low"], given["high"]) == (90, 200)


@pytest.mark.parametrize("data_term", ["stabilised", "likelihood"])
def test_values_below_the_black_level_are_fitted(counts, data_term):
    counts[:20] = 100 + np.random.default_rng(1).normal(0, 1.5, (20, 52, 1))
    assert (counts < 100).sum() > 400
    result = dipengine.denoise(counts, data_term=data_term, **SENSOR, **{**TINY, "iterations": 120, "channels": 16})
    assert np.isfinite(result.image).all() and result.record["rollbacks"] == 0
    assert result.history.loss[-1] < result.history.loss[0] / 3


@pytest.mark.parametrize("data_term", ["stabilised", "likelihood"])
def test_a_fit_stops_where_the_residual_is_the_sensors_noise(counts, data_term):
    """The fixed look-back of 100 iterations earlier, the residual, whitened by the image's own variance, was 1."""
    settings = {"data_term": data_term, "channels": 16, "levels": 2, "threads": 1, **SENSOR}
    result = dipengine.denoise(counts, stop="auto", iterations=1500, **settings)
    assert result.record["stop_reason"] == "discrepancy"
    then = dipengine.denoise(counts, stop="fixed", iterations=result.record["iterations"] - 100, **settings).image
    variance = (then - 100).clip(0) / 2 + 1.5**2
    assert np.mean((then - counts) ** 2 / variance) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("data_term", ["stabilised", "likelihood"])
def test_masked_pixels_never_reach_the_fit(counts, data_term):
    mask = np.ones(counts.shape[:2], bool)
    mask[5:9, 7:30] = False
    first, second = (
        dipengine.denoise(np.where(mask[:, :, None], counts, v), mask=mask, data_term=data_term, **SENSOR, **TINY).image
        for v in (0.0, 1e5)
    )
    np.testing.assert_array_equal(first, second)
    inverted = dipengine.denoise(counts, mask=~mask, invert_mask=True, data_term=data_term, **SENSOR, **TINY).image
    np.testing.assert_array_equal(first, inverted)


def test_the_curve_travels_with_the_generator(counts, tmp_path):
    result = dipengine.denoise(counts, **SENSOR, **TINY)
    result.generator.save(tmp_path / "g.safetensors")
    loaded = dipengine.FittedGenerator.load(tmp_path / "g.safetensors")
    assert loaded.values == result.generator.values
    np.testing.assert_array_equal(loaded.values.from_unit(loaded.delivered, np.float64), result.image)


def test_psnr_is_measured_in_data_units(counts, clean):
    result = dipengine.denoise(counts, truth=clean, **SENSOR, **TINY)
    error = np.mean((result.image - clean) ** 2)
    expected = 10 * np.log10((clean.max() - clean.min()) ** 2 / error)
    assert result.record["psnr"] == pytest.approx(expected)
    assert result.history.psnr[-1][1] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"noise": "salt"}, "no noise 'salt'"),
        ({"noise": "gaussian", "gain": 2}, "gain describes"),
        ({"noise": "poisson"}, "needs gain"),
        ({"noise": "poisson", "gain": 0}, "gain"),
        ({"noise": "poisson", "gain": 1, "read_noise": 2}, "no read-noise"),
        ({"noise": "poisson-gaussian", "gain": 1}, "needs read-noise"),
        ({"noise": "poisson-gaussian", "gain": 1, "read_noise": -2}, "read-noise"),
        ({"noise": "poisson", "gain": 1, "sigma": 3}, "sigma is for gaussian"),
        ({"gain": 2}, "gain describes"),
        ({"offset": 0}, "offset describes"),
        ({"noise": "gaussian", "sigma": 1, "read_noise": 2}, "read-noise describes"),
        ({"noise": "poisson", "gain": 1, "offset": 1e4}, "black level"),
        ({"noise": "poisson-gaussian", "gain": 1, "read_noise": 1e300}, "more electrons than can be counted"),
        ({"noise": "poisson-gaussian", "gain": 1, "read_noise": 1e4}, "scatter by 10000"),
        ({"noise": "poisson", "gain": 1e-6}, "scatter by"),
        ({"noise": "poisson", "gain": "2"}, "gain is '2'; give a number"),
        ({"sigma": "2"}, "sigma is '2'; give a number"),
        ({"noise": "poisson", "gain": 1, "data_term": "magic"}, "no data term"),
        ({**SENSOR, "data_term": "stabilised", "value_range": (0, 50)}, "value range 0,50 lies below"),
        ({"data_term": "likelihood"}, "data-term is for"),
        ({"mask": np.ones((3, 3))}, "one size"),
    ],
)
def test_contradictions_are_one_sentence(counts, options, message):
    with pytest.raises(InputError, match=message) as caught:
        dipengine.denoise(counts, **options, **TINY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64, int, torch.tensor], ids=lambda number: number.__name__)
def test_numbers_of_any_library_go_into_a_record_that_can_be_written(counts, number):
    result = dipengine.denoise(counts, noise="poisson-gaussian", gain=number(2), offset=100, read_noise=number(1), **TINY)
    assert json.loads(json.dumps(result.record))["parameters"]["gain"] == 2.0


def test_one_pixel_needs_no_scatter():
    pixel = np.full((1, 1), 103.0)
    assert dipengine.denoise(pixel, **SENSOR, **TINY).image.shape == (1, 1)
