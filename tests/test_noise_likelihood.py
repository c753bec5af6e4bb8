"""The sensor's data term against log-likelihoods in closed form, and what any likelihood must satisfy."""

import numpy as np
import pytest
import torch
from scipy import stats

from dipengine.errors import InputError
from dipengine.images import ValueMap
from dipengine.noise.likelihood import FLOOR, SensorLikelihood
from dipengine.noise.sensor import Sensor

VALUES = ValueMap(2.0, 52.0)


def tensor(data) -> torch.Tensor:
    """Data values as a float64 tensor [1, 1, 1, n] in [0, 1]."""
    return torch.as_tensor((np.asarray(data, float) - VALUES.low) / VALUES.span).reshape(1, 1, 1, -1)


def test_photon_noise_is_scipys_poisson_deviance():
    sensor = Sensor(3.0, 2.0)
    photons = np.array([1.0, 2, 7, 30, 120])
    clean = np.array([0.5, 4.0, 7.0, 25.0, 140.0])
    expected = 2 * (stats.poisson.logpmf(photons, photons) - stats.poisson.logpmf(photons, clean))
    loss = SensorLikelihood(sensor, VALUES).loss(tensor(sensor.data(clean)), tensor(sensor.data(photons)))
    assert loss.item() == pytest.approx(expected.mean(), rel=1e-10)


def test_read_noise_shifts_both_by_its_variance():
    sensor = Sensor(2.0, 2.0, 1.5)
    k, e = np.array([0.5, 4.0, 41.0]), np.array([2.0, 3.0, 50.0])
    r2 = 9.0

    def log_likelihood(rate):
        return (k + r2) * np.log(rate + r2) - (rate + r2)

    expected = 2 * (log_likelihood(k) - log_likelihood(e))
    loss = SensorLikelihood(sensor, VALUES).loss(tensor(sensor.data(e)), tensor(sensor.data(k)))
    assert loss.item() == pytest.approx(expected.mean(), rel=1e-10)


@pytest.mark.parametrize("sensor", [Sensor(1.0, 4.0), Sensor(2.0, 10.0, 1.0)])
def test_the_gradient_is_the_score_everywhere(sensor):
    """Data and image on both sides of the black level."""
    k, e = np.meshgrid([-3.0, -0.5, 0.05, 1.0, 6.0], [-2.0, 0.02, 0.5, 3.0, 9.0])
    image = tensor(sensor.data(e.ravel())).requires_grad_()
    SensorLikelihood(sensor, VALUES).loss(image, tensor(sensor.data(k.ravel()))).backward()
    per_unit = sensor.gain * VALUES.span
    expected = 2 * per_unit * (e - k) / (np.maximum(e, FLOOR) + sensor.read_electrons**2) / k.size
    np.testing.assert_allclose(image.grad.numpy().ravel(), expected.ravel(), rtol=1e-9)


@pytest.mark.parametrize("sensor", [Sensor(1.0), Sensor(2.0, 10.0, 1.0)])
def test_the_loss_is_least_and_zero_where_the_image_is_the_data(sensor):
    k = np.array([-4.0, -0.5, 0.0, 0.05, 1.0, 80.0])
    term = SensorLikelihood(sensor, VALUES)
    assert term.loss(tensor(sensor.data(k)), tensor(sensor.data(k))).item() == pytest.approx(0, abs=1e-12)
    for shift in (-3.0, -0.01, 0.01, 5.0):
        for one in k:
            assert term.loss(tensor([sensor.data(one + shift)]), tensor([sensor.data(one)])).item() > 0


@pytest.mark.parametrize("sensor", [Sensor(1.0), Sensor(2.0, 10.0, 3.0)])
def test_loss_and_discrepancy_are_one_at_the_clean_image(sensor):
    rng = np.random.default_rng(0)
    clean = rng.uniform(8, 200, 200_000)
    measured = rng.poisson(clean) + sensor.read_electrons * rng.standard_normal(clean.shape)
    term = SensorLikelihood(sensor, VALUES)
    image, target = tensor(sensor.data(clean)), tensor(sensor.data(measured))
    assert term.discrepancy(image, target) == pytest.approx(1, abs=0.015)
    assert term.loss(image, target).item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("sensor", [Sensor(1.0), Sensor(2.0, 10.0, 3.0)])
def test_bright_pixels_that_are_not_fitted_yet_count_in_a_dark_frame(sensor):
    """4 bright pixels of 4000 at 6 standard deviations: unseen in the mean over all, alone in that by the cube of the light."""
    rng = np.random.default_rng(0)
    clean = np.full(4000, 10.0)
    clean[::1000] = 1000
    variance = clean + sensor.read_electrons**2
    residual = 0.9 * rng.choice([-1.0, 1.0], clean.shape) * np.sqrt(variance)
    term = SensorLikelihood(sensor, VALUES)
    image = tensor(sensor.data(clean))
    fitted = term.discrepancy(image, tensor(sensor.data(clean + residual)))
    assert fitted == pytest.approx(0.81, rel=1e-9)
    residual[::1000] *= 6 / 0.9
    squares, shares = residual**2 / variance, clean**3
    assert squares.mean() < 0.9
    expected = np.average(squares, weights=shares) - 2 * np.sqrt(2 * np.square(shares).sum()) / shares.sum()
    assert expected > 30
    assert term.discrepancy(image, tensor(sensor.data(clean + residual))) == pytest.approx(expected, rel=1e-9)


def test_the_mean_of_bright_pixels_survives_single_precision():
    """100,000 electrons: the two halves of the deviance agree in their first six digits."""
    sensor = Sensor(2.0)
    values = ValueMap(0.0, 65535.0)
    k, e = 100_000.0, 100_300.0
    image = torch.full((1, 1, 8, 8), e / sensor.gain / values.span).requires_grad_()
    target = torch.full((1, 1, 8, 8), k / sensor.gain / values.span)
    loss = SensorLikelihood(sensor, values).loss(image, target)
    assert loss.item() == pytest.approx(2 * (e - k - k * np.log(e / k)), rel=0.01)


def test_missing_pixels_count_for_nothing():
    sensor = Sensor(1.0, 0.0, 1.0)
    term = SensorLikelihood(sensor, VALUES)
    rng = np.random.default_rng(1)
    image, target = (torch.from_numpy(rng.random((1, 3, 4, 5))) for _ in range(2))
    mask = torch.from_numpy((rng.random((1, 1, 4, 5)) > 0.4).astype(float))
    kept = mask.expand_as(image) > 0
    for measure in (term.loss, term.discrepancy):
        whole = measure(image[kept].reshape(1, 1, 1, -1), target[kept].reshape(1, 1, 1, -1))
        assert float(measure(image, target, mask)) == pytest.approx(float(whole), rel=1e-12)


@pytest.mark.parametrize(
    "words, message",
    [
        ({"gain": 0.0}, "gain"),
        ({"gain": -1.0}, "gain"),
        ({"gain": float("nan")}, "gain"),
        ({"gain": 1.0, "offset": float("inf")}, "offset"),
        ({"gain": 1.0, "read_noise": -0.1}, "read-noise"),
    ],
)
def test_impossible_sensors_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        Sensor(**words)
