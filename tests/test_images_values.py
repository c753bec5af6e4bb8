"""The affine map between data units and [0, 1]."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_samples import noise

from dipengine.errors import InputError
from dipengine.images import ValueMap
from dipengine.images import values as values_module


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_every_8_and_16_bit_value_comes_back(dtype):
    high = np.iinfo(dtype).max
    pixels = np.arange(high + 1, dtype=dtype).reshape(1, -1, 1)
    value_map = ValueMap.for_image(pixels[:, -5:-3], None)
    assert (value_map.low, value_map.high, value_map.span) == (0, high, high)
    unit = value_map.to_unit(pixels)
    assert unit.dtype == np.float32 and unit.min() == 0 and unit.max() == 1
    np.testing.assert_array_equal(value_map.from_unit(unit, dtype), pixels)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32", "int64", "float32", "float64"])
def test_other_dtypes_are_mapped_by_the_range_of_their_known_pixels(dtype):
    pixels = (noise("uint8", 3) // 2).astype(dtype)
    known = np.ones(pixels.shape[:2], bool)
    known[0] = False
    pixels[0] = 127
    pixels[1, :2, 0] = [0, 101]
    pixels[1:] = np.minimum(pixels[1:], 101)
    assert ValueMap.for_image(pixels, known) == ValueMap(0.0, 101.0)
    assert ValueMap.for_image(pixels, None) == ValueMap(0.0, 127.0)
    assert ValueMap.for_image(pixels, known, (-5, 300)) == ValueMap(-5.0, 300.0)


def test_counts_are_mapped_by_their_range_also_in_16_bits():
    pixels = np.array([[[300], [1000]]], np.uint16)
    assert ValueMap.for_image(pixels, None, data_units=True) == ValueMap(300.0, 1000.0)
    assert ValueMap.for_image(pixels, None, (0, 4095)) == ValueMap(0.0, 4095.0)


def test_16_bits_that_hold_the_counts_of_fewer_are_mapped_by_their_range():
    """As 0..65535 they are one dark grey, of which a fit paints noise and structure alike, or neither."""
    counts = np.array([[[300], [16383]]], np.uint16)
    assert ValueMap.for_image(counts) == ValueMap(300.0, 16383.0)
    counts[0, 0] = 16384
    assert ValueMap.for_image(counts) == ValueMap(0.0, 65535.0)
    assert ValueMap.for_image(counts, np.array([[False, True]])) == ValueMap(16383.0, 16384.0)
    assert ValueMap.for_image(np.full((1, 2, 1), 7, np.uint8)) == ValueMap(0.0, 255.0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_map_knows_whether_it_is_the_whole_range(dtype):
    top = np.iinfo(dtype).max
    assert ValueMap(0, top).is_whole(dtype) and not ValueMap(0, top).is_whole("float32")
    assert not ValueMap(0, top - 1).is_whole(dtype) and not ValueMap(1, top).is_whole(dtype)


@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_map_agrees_with_exact_arithmetic(a, b, places):
    low, high = min(a, b), max(a, b)
    if not low < high or high - low < 1e-290:
        return
    value_map = ValueMap(low, high)
    pixels = np.array([low + place * (high - low) for place in places]).reshape(-1, 1, 1)
    exact = [float((Fraction(value) - Fraction(low)) / (Fraction(high) - Fraction(low))) for value in pixels.flat]
    np.testing.assert_allclose(value_map.to_unit(pixels).ravel(), exact, rtol=2**-23, atol=1e-38)
    unit = np.array(places).reshape(-1, 1, 1)
    exact = [float(Fraction(low) + Fraction(place) * (Fraction(high) - Fraction(low))) for place in places]
    np.testing.assert_allclose(value_map.from_unit(unit, "float64").ravel(), exact,
                               rtol=0, atol=4 * 2**-52 * max(abs(low), abs(high)))


def test_float64_detail_on_a_large_pedestal_survives_the_map():
    """Detail that float32 cannot hold beside its pedestal: 1e-3 on top of 1e6."""
    detail = np.linspace(0, 1e-3, 256).reshape(16, 16, 1)
    value_map = ValueMap.for_image(1e6 + detail, None)
    unit = value_map.to_unit(1e6 + detail)
    np.testing.assert_allclose(unit, detail / 1e-3, atol=1e-6)
    np.testing.assert_allclose(value_map.from_unit(unit, np.float64) - 1e6, detail, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, -7.5, 1e20])
def test_a_constant_image_has_a_map(value):
    pixels = np.full((3, 4, 1), value)
    value_map = ValueMap.for_image(pixels, None)
    assert value_map.low == value < value_map.high
    np.testing.assert_array_equal(value_map.to_unit(pixels), 0)
    np.testing.assert_array_equal(value_map.from_unit(value_map.to_unit(pixels), np.float64), pixels)


def test_integers_are_rounded_and_clipped_and_floats_are_not():
    unit = np.array([-0.5, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 2.0], np.float32).reshape(1, -1, 1)
    assert ValueMap(0, 255).from_unit(unit, np.uint8).ravel().tolist() == [0, 0, 0, 1, 255, 255]
    assert ValueMap(0, 2).from_unit(unit, np.float32).ravel()[[0, -1]].tolist() == [-1, 4]


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
def test_clipping_wide_integers_never_wraps_around(dtype):
    unit = np.array([-1.0, 0.0, 1.0, 2.0]).reshape(1, -1, 1)
    values = ValueMap(-1e19, 3e19).from_unit(unit, dtype).ravel()
    info = np.iinfo(dtype)
    assert values[0] == info.min and values[-1] == pytest.approx(info.max, rel=1e-15)


def test_missing_pixels_come_out_as_zero_and_others_are_not_clipped():
    pixels = np.array([np.nan, 1.0, 3.0, 9.0]).reshape(1, -1, 1)
    value_map = ValueMap.for_image(pixels, ~np.isnan(pixels[..., 0]), (1.0, 3.0))
    assert value_map.to_unit(pixels).ravel().tolist() == [0, 0, 1, 4]
    assert ValueMap.for_image(pixels, ~np.isnan(pixels[..., 0])) == ValueMap(1.0, 9.0)


def test_blocks_of_rows_change_nothing(monkeypatch):
    pixels = noise("float32", 3, (31, 7))
    value_map = ValueMap.for_image(pixels, None)
    whole = value_map.to_unit(pixels)
    monkeypatch.setattr(values_module, "_BLOCK_ELEMENTS", 50)
    np.testing.assert_array_equal(value_map.to_unit(pixels), whole)
    np.testing.assert_array_equal(value_map.from_unit(whole, np.int16), np.rint(
        whole.astype(float) * value_map.span + value_map.low).astype(np.int16))


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (0, math.inf), (math.nan, 1), (-1.7e308, 1.7e308)])
def test_a_bad_range_is_refused(low, high):
    with pytest.raises(InputError, match="range"):
        ValueMap.for_image(noise("uint8"), None, (low, high))


def test_images_without_a_range_are_refused():
    with pytest.raises(InputError, match="no known pixel"):
        ValueMap.for_image(noise("float32"), np.zeros((23, 37), bool))
    with pytest.raises(InputError, match="NaN"):
        ValueMap.for_image(np.array([[[np.nan]]]), None)
    with pytest.raises(InputError, match="two"):
        ValueMap.for_image(noise("uint8"), None, (1, 2, 3))


def test_the_record_brings_the_map_back():
    value_map = ValueMap(-0.1, 1e6 / 3)
    assert ValueMap.from_dict(value_map.to_dict()) == value_map
    assert value_map.to_dict() == {"low": -0.1, "high": 1e6 / 3}
