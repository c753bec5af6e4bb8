"""The code z: noise in bytes, the authors' mesh grid, an image extended to the canvas."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dipengine.errors import InputError
from dipengine.generators.code import Code, reflected_indices


def test_noise_is_uniform_from_zero_to_its_scale_in_256_levels():
    z = Code(depth=8, seed=4).make((96, 64))
    assert z.shape == (96, 64, 8)
    assert z.dtype == np.float32
    k = z.astype(np.float64) * 255 / 0.1
    assert np.abs(k - np.rint(k)).max() < 1e-4
    assert (np.rint(k).min(), np.rint(k).max()) == (0, 255)
    assert abs(k.mean() - 127.5) < 5 * np.sqrt((256**2 - 1) / 12 / k.size)
    counts = np.bincount(np.rint(k).astype(int).ravel(), minlength=256)
    expected = k.size / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 5 * np.sqrt(2 * 255)


def test_noise_is_stored_exactly_by_its_bytes():
    code = Code(depth=3, seed=9, scale=0.25)
    k = code.noise_bytes((8, 12))
    assert k.dtype == np.uint8
    assert (k.astype(np.float32) * np.float32(0.25 / 255)).tobytes() == code.make((8, 12)).tobytes()


def test_noise_runs_pixel_by_pixel_so_that_a_taller_canvas_begins_with_a_shorter_one():
    short, tall = (Code(depth=5, seed=1).make((height, 16)) for height in (8, 24))
    assert np.array_equal(short, tall[:8])


def test_the_seed_alone_decides_the_noise():
    assert np.array_equal(Code(seed=3).make((8, 8)), Code(seed=3).make((8, 8)))
    assert not np.array_equal(Code(seed=3).make((8, 8)), Code(seed=3 + 2**32).make((8, 8)))


def test_meshgrid_is_the_fraction_of_width_then_of_height():
    z = Code("meshgrid", depth=2).make((64, 96))
    rows, columns = np.mgrid[0:64, 0:96]
    assert z.dtype == np.float32
    np.testing.assert_allclose(z[..., 0], columns / 95.0, atol=1e-7)
    np.testing.assert_allclose(z[..., 1], rows / 63.0, atol=1e-7)
    assert (z.min(), z.max()) == (0, 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (20, 33), (64, 64)])
def test_an_image_is_extended_by_reflection_however_small(size):
    image = np.random.default_rng(0).random((*size, 3), dtype=np.float32)
    z = Code.of_image(image).make((64, 64))
    # NumPy's own reflection bounces the same way, and repeats an axis of one sample.
    expected = np.pad(image, ((0, 64 - size[0]), (0, 64 - size[1]), (0, 0)), mode="reflect")
    assert np.array_equal(z, expected)


def test_reflection_leaves_out_the_border_sample():
    assert reflected_indices(4, 9).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2]


def test_an_image_code_keeps_its_own_copy():
    image = np.full((4, 4, 1), 0.5, np.float32)
    code = Code.of_image(image)
    image[:] = 0
    assert (code.make((4, 4)) == 0.5).all()


@pytest.mark.parametrize("code", [Code(), Code("meshgrid", depth=2), Code(depth=3, seed=2**64 - 1, scale=0.2)])
def test_a_code_survives_json(code):
    restored = Code.from_dict(json.loads(json.dumps(code.to_dict())))
    assert np.array_equal(restored.make((16, 8)), code.make((16, 8)))


def test_an_image_code_survives_json_with_its_image_beside_it():
    image = np.random.default_rng(1).random((5, 6, 3), dtype=np.float32)
    code = Code.of_image(image)
    restored = Code.from_dict(json.loads(json.dumps(code.to_dict())), image=code.image)
    assert np.array_equal(restored.make((8, 8)), code.make((8, 8)))


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "fourier"},
        {"kind": "meshgrid", "depth": 3},
        {"kind": "image"},
        {"image": np.zeros((2, 2, 32), np.float32)},
        {"kind": "image", "depth": 3, "image": np.zeros((2, 2, 1), np.float32)},
        {"kind": "image", "depth": 3, "image": np.zeros((2, 2, 3), np.uint8)},
        {"kind": "image", "depth": 1, "image": np.full((2, 2, 1), 1.5, np.float32)},
        {"kind": "image", "depth": 1, "image": np.full((2, 2, 1), np.nan, np.float32)},
        {"seed": -1},
        {"seed": 2**64},
        {"depth": 0},
        {"scale": 0.0},
        {"scale": float("nan")},
    ],
)
def test_an_unusable_code_is_refused_with_one_sentence(settings):
    with pytest.raises(InputError) as caught:
        Code(**settings)
    assert str(caught.value).endswith(".")


def test_only_noise_has_bytes_and_unknown_settings_are_refused():
    with pytest.raises(InputError, match="no noise bytes"):
        Code("meshgrid", depth=2).noise_bytes((8, 8))
    with pytest.raises(InputError, match="unknown setting"):
        Code.from_dict(Code().to_dict() | {"octaves": 3})
