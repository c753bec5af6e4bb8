"""How strong noise is, told from the image alone: against the noise that was added, and as a task is told of it."""

import json

import array_api_strict as strict
import numpy as np
import pytest
import torch

import dipengine
from conftest import TINY, synthetic_picture
from dipengine.cli.main import main
from dipengine.errors import InputError
from dipengine.images import Image, read_image, write_image
from dipengine.noise.estimate import estimated_noise, estimated_noise_of_parts

STOPS = {**TINY, "channels": 16, "stop": "auto", "iterations": 400}  # by the noise, so that its strength counts
QUICK = ["--channels", "8", "--levels", "2", "--iterations", "6", "--stop", "fixed", "--threads", "1"]


def estimated_sigma(pixels, known=None):
    return estimated_noise(pixels, known).sigma


def noisy(sigma, height=96, width=80, channels=3, seed=0):
    """A picture in 0..255 and the noise that lies on it."""
    noise = np.random.default_rng(seed).normal(0, sigma, (height, width, channels))
    # Alone, as channels beyond four are, the disc's edge counts as noise where there is little: see the module.
    picture = synthetic_picture(height, width, channels if channels <= 4 else 1) * 255
    return picture + noise, noise.std()


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
@pytest.mark.parametrize("height, width, within", [(96, 80, 0.05), (150, 60, 0.05), (40, 44, 0.1), (24, 30, 0.15), (9, 400, 0.1)])
@pytest.mark.parametrize("sigma", [0.5, 5, 20, 50])
def test_the_noise_that_was_added_is_found(height, width, within, channels, sigma):
    for seed in range(3):
        pixels, added = noisy(sigma, height, width, channels, seed)
        assert estimated_sigma(pixels) == pytest.approx(added, rel=within)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("height, width", [(96, 80), (24, 30)])
def test_grey_images_stored_in_colour_have_the_noise_of_grey_ones(channels, height, width):
    pixels, added = noisy(20, height, width, 1)
    known = np.ones((height, width), bool)
    known[5, 7] = False
    for of in (None, known):
        colour = np.repeat(pixels, channels, axis=2)
        if of is not None:
            colour[5, 7] = np.nan
        expected = estimated_noise(np.nan_to_num(pixels), of)
        assert estimated_noise(colour, of) == expected and expected.white
        assert expected.sigma == pytest.approx(added, rel=0.15)
    colour += np.random.default_rng(1).normal(0, 1, colour.shape)  # not grey any more
    assert not estimated_noise(colour, known).white
    whole = estimated_noise(np.repeat(pixels, channels, axis=2))
    middle = height // 2
    parts = [(np.repeat(pixels[: middle + 8], channels, axis=2), None, slice(0, middle)),
             (np.repeat(pixels[middle:], channels, axis=2), None, slice(0, height - middle))]
    assert estimated_noise_of_parts((height, width), parts).sigma == pytest.approx(whole.sigma, rel=0.01)


def test_units_and_offsets_are_nothing_to_it():
    pixels, _ = noisy(20)
    expected = estimated_sigma(pixels)
    assert estimated_sigma(pixels / 255) == pytest.approx(expected / 255, rel=1e-3)
    assert estimated_sigma(1e7 + pixels) == pytest.approx(expected, rel=1e-3)
    rounded = np.rint(pixels).astype(np.int32)
    assert estimated_sigma(rounded) == pytest.approx(expected, rel=0.01)


def test_structure_is_no_noise():
    """Edges and texture of a photograph's strength: without noise the estimate is a small part of what they scatter by."""
    y, x = np.mgrid[:128, :128]
    picture = (100 * (x > 50 + y / 4) + 20 * np.sin(x / 3) + 15 * np.cos(y / 5))[..., None]
    assert estimated_sigma(picture + np.random.default_rng(0).normal(0, 1, picture.shape)) == pytest.approx(1, rel=0.25)


def test_what_is_not_known_does_not_count():
    pixels, added = noisy(10)
    known = np.ones(pixels.shape[:2], bool)
    known[:40] = False
    pixels[:40] += np.random.default_rng(1).normal(0, 100, pixels[:40].shape)
    assert estimated_sigma(pixels) > 1.5 * added
    assert estimated_sigma(pixels, known) == pytest.approx(added, rel=0.06)
    pixels[:40] = np.nan
    assert estimated_sigma(pixels, known) == pytest.approx(added, rel=0.06)


@pytest.mark.parametrize("xp, put", [(strict, strict.asarray), (torch, torch.from_numpy)], ids=["strict", "torch"])
def test_of_any_library(xp, put):
    pixels, _ = noisy(10)
    known = np.random.default_rng(0).random(pixels.shape[:2]) > 0.01
    assert estimated_noise(put(pixels), put(known)).sigma == estimated_sigma(pixels, known)
    as_floats = pixels.astype(np.float32)
    assert estimated_noise(put(as_floats)).sigma == estimated_sigma(as_floats)


def test_in_parts_it_is_nearly_that_of_the_whole():
    pixels, _ = noisy(15, 200, 60)
    parts = [(pixels[max(0, r - 2) : r + 52], None, slice(r - max(0, r - 2), r - max(0, r - 2) + 50)) for r in range(0, 200, 50)]
    assert estimated_noise_of_parts((200, 60), parts).sigma == pytest.approx(estimated_sigma(pixels), rel=0.02)


def test_large_images_are_passed_over_in_steps(monkeypatch):
    pixels, added = noisy(15, 300, 200)
    monkeypatch.setattr("dipengine.noise.estimate._MOST", 5000)
    monkeypatch.setattr("dipengine.noise.estimate._AT_ONCE", 700)
    assert estimated_sigma(pixels) == pytest.approx(added, rel=0.06)


@pytest.mark.parametrize("pixels, known, words", [
    (noisy(20, 9, 9)[0], None, "too small"),
    (noisy(20, 1, 1)[0], None, "too small"),
    (noisy(20)[0], np.indices((96, 80)).sum(0) % 2 == 0, "too little of it is known"),
    (np.full((64, 64, 3), 7.3), None, "shows no noise"),
    (np.add.outer(np.arange(64.0), np.arange(64.0))[..., None], None, "shows no noise"),
])
def test_where_nothing_can_be_told_it_says_so(pixels, known, words):
    with pytest.raises(InputError, match=words) as error:
        estimated_sigma(pixels, known)
    assert "give sigma" in str(error.value) and "\n" not in str(error.value)


def test_gaussian_noise_without_a_sigma_is_fitted_as_if_it_were_told():
    pixels = np.clip(np.rint(noisy(20)[0]), 0, 255).astype(np.uint8)
    for restore in (dipengine.denoise, lambda image, **more: dipengine.deblur(image, np.ones((1, 3)) / 3, **more)):
        estimated = restore(pixels, noise="gaussian", **STOPS)
        sigma = estimated.record["parameters"]["sigma"]
        assert sigma == pytest.approx(19.5, rel=0.1) and estimated.record["parameters"]["sigma_estimated"] is True
        told, other = (restore(pixels, sigma=given, **STOPS) for given in (sigma, 1.2 * sigma))
        np.testing.assert_array_equal(estimated.image, told.image)
        assert estimated.record["iterations"] == told.record["iterations"] > other.record["iterations"]
        assert "sigma_estimated" not in told.record["parameters"]
    missing = np.float32(pixels)
    missing[:30] = np.nan
    assert dipengine.denoise(missing, noise="gaussian", **TINY).record["parameters"]["sigma"] == pytest.approx(19.5, rel=0.1)


def smeared(sigma):
    """Noise that has been resampled, as most of what comes from cameras and scanners has."""
    noise = np.random.default_rng(0).normal(0, sigma, (96, 80, 3))
    noise = noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)
    return synthetic_picture(96, 80, 3) * 255 + noise / 3**0.5


def test_noise_that_nobody_tells_of_is_taken_where_it_is_white():
    white, other = (np.clip(np.rint(pixels), 0, 255).astype(np.uint8) for pixels in (noisy(20)[0], smeared(20)))
    assert estimated_noise(white).white and not estimated_noise(other).white
    taken = dipengine.denoise(white, **STOPS)
    np.testing.assert_array_equal(taken.image, dipengine.denoise(white, noise="gaussian", **STOPS).image)
    assert taken.record["stop_reason"] == "discrepancy"
    assert taken.record["parameters"]["noise"] == "gaussian" and taken.record["parameters"]["sigma_estimated"] is True
    for result in (
        dipengine.denoise(np.clip(np.rint(noisy(45)[0]), 0, 255).astype(np.uint8), **STOPS),  # strong
        dipengine.denoise(other, **STOPS), dipengine.denoise(white, noise="unknown", **STOPS),
        dipengine.denoise(white, preset="paper", **STOPS), dipengine.denoise(white[:8, :8], **STOPS),
        dipengine.denoise(np.full((64, 64), 7, np.uint8), **STOPS), dipengine.deblur(white, np.ones((1, 3)), **STOPS),
    ):
        parameters = result.record["parameters"]
        assert parameters["noise"] is None and parameters["sigma"] is None and "sigma_estimated" not in parameters
        assert result.record["stop_reason"] != "discrepancy"
    with pytest.raises(InputError, match="leave out noise unknown"):
        dipengine.denoise(white, noise="unknown", sigma=3, **TINY)


@pytest.mark.parametrize("sigma", [5, 10, 25])
def test_white_noise_is_told_from_other_by_its_eigenvalues(sigma):
    for seed in range(3):
        level = estimated_noise(noisy(sigma, seed=seed)[0])
        assert level.white and level.spread[0] < 1.5
    for make in (smeared, lambda sigma: np.kron(noisy(sigma, 48, 40)[0], np.ones((2, 2, 1)))):
        level = estimated_noise(make(sigma))
        assert not level.white and level.spread[0] > 1.8


def test_noise_that_is_smeared_a_little_is_told_by_the_quarter_alone():
    noise = np.random.default_rng(0).normal(0, 20, (96, 80, 3))
    level = estimated_noise(synthetic_picture(96, 80, 3) * 255 + noise + 0.25 * (np.roll(noise, 1, 0) + np.roll(noise, 1, 1)))
    assert level.spread[0] > 1.8 and level.spread[1] < 3.5 and level.evenness > 0.9 and not level.white


def test_what_lies_in_some_directions_alone_is_not_taken_for_white():
    """Noise that is the same in all channels of a tinted picture leaves the rounding, which is white, in two directions of three;
    a demosaicked one in those between its neighbours; noise may be stronger in one channel than in the others."""
    grey = noisy(10, 128, 96, 1)[0]
    tinted = np.rint(np.clip(grey * (1.0, 0.8, 0.6), 0, 255))
    level = estimated_noise(tinted)
    assert level.sigma < 1 and level.spread[0] < 1.5 and level.spread[1] < 4 and level.evenness < 0.2 and not level.white
    with pytest.raises(InputError, match="shows no noise"):  # in one direction of three there is nothing at all
        estimated_noise(tinted[:, :, [0, 0, 1]])
    assert dipengine.denoise(np.uint8(tinted[:, :, [0, 0, 1]]), **TINY).record["parameters"]["noise"] is None
    assert dipengine.denoise(np.uint8(tinted[:, :, [0, 0, 0]]), **TINY).record["parameters"]["noise"] == "gaussian"
    between = grey.copy()
    between[1:-1:2] = (between[:-2:2] + between[2::2]) / 2
    between[:, 1:-1:2] = (between[:, :-2:2] + between[:, 2::2]) / 2
    level = estimated_noise(np.rint(np.clip(between, 0, 255)))
    assert level.sigma < 1 and level.spread[1] > 10 and not level.white
    for sigmas, white in (((2, 2, 10), False), ((4, 4, 10), False), ((1, 8, 10), False), ((5, 8, 10), True), ((9, 9, 10), True)):
        level = estimated_noise(synthetic_picture(128, 96) * 255 + np.random.default_rng(0).normal(0, 1, (128, 96, 3)) * sigmas)
        assert level.white is white
        assert not white or level.sigma == pytest.approx(np.sqrt(np.mean(np.square(sigmas))), rel=0.1)


def test_the_same_bits_however_the_sums_are_formed(monkeypatch):
    """BLAS may add in another order with other threads: the fit is the same."""
    pixels = np.clip(np.rint(noisy(20)[0]), 0, 255).astype(np.uint8)
    expected = dipengine.denoise(pixels, **STOPS)
    monkeypatch.setattr("dipengine.noise.estimate._AT_ONCE", 900)
    other = dipengine.denoise(pixels, **STOPS)
    assert other.record["parameters"] == expected.record["parameters"]
    np.testing.assert_array_equal(other.image, expected.image)


def test_tiles_of_one_image_take_its_noise_or_none_of_them_does(tmp_path):
    for name, pixels, sigma in (("white", noisy(20)[0], 19.8), ("other", smeared(20), None)):
        pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        write_image(tmp_path / f"{name}.png", pixels, Image(pixels))
        words = ["denoise", str(tmp_path / f"{name}.png"), "-o", str(tmp_path / "out.png"), "--tile", "40,8", "--quiet", "--record",
                 str(tmp_path / "r.json"), *QUICK]
        assert main(words) == 0
        parameters = json.loads((tmp_path / "r.json").read_text())["parameters"]
        assert parameters["sigma"] == (None if sigma is None else pytest.approx(sigma, rel=0.05))
        assert parameters.get("sigma_estimated", False) is (sigma is not None)


def test_the_command_line_says_what_it_found(tmp_path, capsys):
    pixels = np.clip(np.rint(noisy(20)[0]), 0, 255).astype(np.uint8)
    write_image(tmp_path / "in.png", pixels, Image(pixels))
    words = ["denoise", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--noise", "gaussian", "--record",
             str(tmp_path / "r.json"), *QUICK]
    assert main(words) == 0
    found = json.loads((tmp_path / "r.json").read_text())["parameters"]["sigma"]
    assert f"noise estimated at sigma {found:.3g}" in capsys.readouterr().err
    whole = read_image(tmp_path / "out.png").pixels
    assert main([*words, "--tile", "40,8"]) == 0
    parameters = json.loads((tmp_path / "r.json").read_text())["parameters"]
    # One sigma for all tiles, that of the whole image.
    assert parameters["sigma"] == pytest.approx(found, rel=0.02) and parameters["sigma_estimated"] is True
    assert f"noise estimated at sigma {parameters['sigma']:.3g}" in capsys.readouterr().err
    assert read_image(tmp_path / "out.png").pixels.shape == whole.shape


def test_a_batch_estimates_each_image_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for sigma in (10, 30):
        pixels = np.clip(np.rint(noisy(sigma)[0]), 0, 255).astype(np.uint8)
        write_image(f"in/{sigma}.png", pixels, Image(pixels))
    assert main(["batch", "in", "-o", "out", "--noise", "gaussian", "--quiet", *QUICK[:-2]]) == 0
    found = [json.loads((tmp_path / f"out/{sigma}.png.json").read_text())["parameters"]["sigma"] for sigma in (10, 30)]
    assert found == pytest.approx([10, 30], rel=0.1)
