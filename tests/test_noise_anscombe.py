"""The generalised Anscombe transform against simulated sensors: unit variance, and a way back that keeps the mean."""

import json
import math

import numpy as np
import pytest

from dipengine.export.exporter import value_record
from dipengine.images import ValueMap
from dipengine.noise.anscombe import Anscombe
from dipengine.noise.sensor import Sensor
from dipengine.noise.stabilised import stabilised_map, stabilised_sigma

SENSORS = [Sensor(1.0), Sensor(2.0, 100.0, 1.5), Sensor(0.5, -10.0, 8.0)]
SAMPLES = 400_000


def measured(sensor: Sensor, electrons: float, samples: int = SAMPLES) -> np.ndarray:
    """Data values of one clean pixel, many times."""
    rng = np.random.default_rng(7)
    photons = rng.poisson(electrons, samples) if electrons > 0 else electrons
    return sensor.data(photons + sensor.read_electrons * rng.standard_normal(samples))


@pytest.mark.parametrize("sensor", SENSORS)
@pytest.mark.parametrize("electrons", [0.0, 0.4, 2.0, 12.0, 150.0, 700.0, 2e4])
def test_the_inverse_of_the_mean_is_the_clean_value(sensor, electrons):
    curve = Anscombe(sensor)
    values = curve.forward(measured(sensor, electrons))
    deviation = np.sqrt(electrons + sensor.read_electrons**2)
    back = sensor.electrons(curve.inverse(values.mean()))
    assert abs(back - electrons) < 5 * deviation / np.sqrt(SAMPLES) + 1e-9


@pytest.mark.parametrize("sensor", SENSORS)
@pytest.mark.parametrize("electrons", [0.0, 0.4, 2.0, 12.0, 150.0])
def test_mean_and_variance_are_those_of_a_simulation(sensor, electrons):
    curve = Anscombe(sensor)
    values = curve.forward(measured(sensor, electrons))
    assert curve.expected(electrons) == pytest.approx(values.mean(), abs=0.01)
    assert curve.variance(electrons) == pytest.approx(values.var(), abs=0.01)


def test_noise_is_stabilised_from_a_few_electrons_on():
    assert Anscombe(Sensor(1.0)).variance(np.array([4.0, 30.0, 1e5])) == pytest.approx(1, abs=0.02)


def test_the_algebraic_inverse_would_be_biased():
    """What the exact inverse is for: the square alone loses a quarter of an electron in mean."""
    sensor = Sensor(1.0)
    mean = Anscombe(sensor).forward(measured(sensor, 1.0)).mean()
    assert (mean / 2) ** 2 - 3 / 8 < 0.9
    assert Anscombe(sensor).inverse(mean) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("sensor", SENSORS)
def test_the_inverse_rises_without_a_jump(sensor):
    stabilised = np.linspace(0, 60, 20_001)
    steps = np.diff(sensor.electrons(Anscombe(sensor).inverse(stabilised)))
    assert (steps >= 0).all()
    assert steps.max() < 0.003 * 60 / 2 * 1.1  # the steepest it gets is M/2


def test_means_below_the_black_level_are_kept():
    """A frame whose sky was subtracted two electrons too far."""
    sensor = Sensor(1.0, 0.0, 3.0)
    curve = Anscombe(sensor)
    assert curve.inverse(curve.forward(measured(sensor, -2.0)).mean()) == pytest.approx(-2.0, abs=0.03)


def test_values_far_below_the_black_level_are_finite():
    curve = Anscombe(Sensor(1.0, 10.0, 2.0))
    values = curve.forward(np.array([-1e6, 0.0, 10.0]))
    assert values[0] == 0 and np.isfinite(curve.inverse(values)).all()


def test_a_map_through_the_curve_keeps_what_it_is_given():
    values = stabilised_map(ValueMap(0.0, 400.0), Sensor(2.0, 3.0, 1.0))
    pixels = np.linspace(5, 400, 50).reshape(5, 10, 1)
    unit = values.to_unit(pixels)
    assert unit.dtype == np.float32 and unit.max() == 1
    # The way back is for means: a single value comes out a quarter of an electron higher at most.
    shift = values.from_unit(unit, np.float64) - pixels
    assert (shift > 0).all() and shift.max() < 0.3 / 2


@pytest.mark.parametrize("level", [0.5, 3.0, 40.0])
def test_sigma_is_the_deviation_of_the_stabilised_noise(level):
    sensor = Sensor(1.0)
    noisy = np.random.default_rng(0).poisson(level, (120, 130, 1)).astype(float)
    noisy[0, 0] = 100.0  # the range is that of the brightest pixel
    values = stabilised_map(ValueMap(0.0, 100.0), sensor)
    unit = values.to_unit(noisy)
    known = np.ones(noisy.shape[:2], bool)
    known[0, 0] = False
    assert stabilised_sigma(values, unit, known) == pytest.approx(unit[known].std(), rel=0.05)


@pytest.mark.parametrize("sensor", [*SENSORS, Sensor(1.0, 0.0, 1e6)])
def test_the_table_of_a_file_goes_back_to_the_bit(sensor):
    curve = Anscombe(sensor)
    read = Anscombe(sensor).with_inverse(json.loads(json.dumps(curve.inverse_table.to_dict(), allow_nan=False)))
    end = curve.inverse_table.means[-1]
    stabilised = np.concatenate([np.linspace(-1, 2 * end, 100_001), curve.inverse_table.means, [np.nextafter(end, 0), np.nan]])
    np.testing.assert_array_equal(read.inverse(stabilised), curve.inverse(stabilised))
    assert read == curve and np.isfinite(read.inverse(stabilised)[:-1]).all()


@pytest.mark.parametrize("sensor", SENSORS)
def test_between_its_rows_the_table_is_interpolated(sensor):
    """NumPy's own interpolation of the rest, and at the rows the electrons that they were computed for."""
    curve = Anscombe(sensor)
    table = curve.inverse_table
    stabilised = np.linspace(table.means[0] - 1, table.means[-1], 10_001)
    d = np.maximum(stabilised, table.means[0])
    electrons = d**2 / 4 + np.interp(d, table.means, table.rests)
    np.testing.assert_allclose(table.electrons(stabilised), electrons, rtol=0, atol=1e-12 * table.means[-1] ** 2)
    np.testing.assert_allclose(curve.expected(table.electrons(table.means)[300:]), table.means[300:], rtol=1e-12)


def by_the_documentation(values: dict, output: float) -> float:
    """What export.onnx_format says to a host that has neither NumPy nor this package."""
    curve, means, rests = values["curve"], values["inverse"]["means"], values["inverse"]["rests"]
    r, n = curve["gain"] * curve["read_noise"], len(means)

    def f(v: float) -> float:
        return 2 * math.sqrt(max(0.0, (v - curve["offset"]) * curve["gain"] + 3 / 8 + r * r))

    d = max(output * (f(values["high"]) - f(values["low"])) + f(values["low"]), means[0])
    if d < means[n - 1]:
        i = max(i for i in range(n) if means[i] <= d)
        rest = rests[i] + (d - means[i]) * ((rests[i + 1] - rests[i]) / (means[i + 1] - means[i]))
    else:
        s, limit = means[n - 1] / d, -1 / 8 - r * r
        rest = limit + (rests[n - 1] - limit) * (s * s)
    return (d * d / 4 + rest) / curve["gain"] + curve["offset"]


@pytest.mark.parametrize("sensor", SENSORS)
def test_ten_lines_of_documentation_suffice_for_a_foreign_host(sensor):
    values = ValueMap(-20.0, 700.0, Anscombe(sensor))
    record = json.loads(json.dumps(value_record(values)))
    units = np.random.default_rng(0).random(800, np.float32)
    expected = [by_the_documentation(record, float(unit)) for unit in units]
    np.testing.assert_array_equal(values.from_unit(units, np.float64), expected)
