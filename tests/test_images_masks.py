"""A mask file says which pixels are known: white is known, black is missing."""

import numpy as np
import PIL.Image
import pytest
import tifffile
from astropy.io import fits
from image_samples import write_png

from dipengine.errors import ImageError
from dipengine.images import read_mask

KNOWN = np.random.default_rng(3).random((23, 37)) > 0.4
WHITE = KNOWN * np.uint8(255)


def _stack(*planes):
    return np.stack([np.broadcast_to(np.asarray(plane, np.uint8), KNOWN.shape) for plane in planes], axis=-1)


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(_stack(WHITE), id="grey"),
        pytest.param(_stack(WHITE, WHITE, WHITE), id="RGB"),
        pytest.param(_stack(WHITE, WHITE, WHITE, 255), id="opaque RGBA"),
        pytest.param(_stack(0, 0, 0, WHITE), id="alpha alone, black"),
        pytest.param(_stack(255, 255, 255, WHITE), id="alpha alone, white"),
        pytest.param(_stack(WHITE, WHITE), id="grey, transparent where black"),
        pytest.param(_stack(np.where(KNOWN, 128, 127)), id="half of full scale is known"),
        pytest.param(_stack(WHITE).astype(np.uint16) * 257, id="16 bits"),
    ],
)
def test_white_is_known_in_every_kind_of_png(tmp_path, pixels):
    write_png(tmp_path / "mask.png", pixels)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", KNOWN.shape), KNOWN)


def test_transparent_counts_as_black_where_colours_vary(tmp_path):
    alpha = np.full(KNOWN.shape, 255, np.uint8)
    alpha[:5] = 0
    write_png(tmp_path / "mask.png", _stack(WHITE, WHITE, WHITE, alpha))
    expected = KNOWN.copy()
    expected[:5] = False
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", KNOWN.shape), expected)


def test_invert_turns_the_meaning(tmp_path):
    write_png(tmp_path / "mask.png", _stack(WHITE))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", (23, 37, 3), invert=True), ~KNOWN)


def test_one_bit_float_and_fits_masks(tmp_path):
    PIL.Image.fromarray(KNOWN).save(tmp_path / "bits.png")
    tifffile.imwrite(tmp_path / "unit.tif", KNOWN.astype("float32"))
    tifffile.imwrite(tmp_path / "wide.tif", KNOWN.astype("float32") * 255)
    fits.PrimaryHDU(KNOWN.astype("int16")).writeto(tmp_path / "small.fits")
    with_nan = np.where(KNOWN, 7.0, 0.0)
    with_nan[0] = np.nan
    fits.PrimaryHDU(with_nan).writeto(tmp_path / "nan.fits")
    for name in ("bits.png", "unit.tif", "wide.tif", "small.fits"):
        np.testing.assert_array_equal(read_mask(tmp_path / name, KNOWN.shape), KNOWN)
    np.testing.assert_array_equal(read_mask(tmp_path / "nan.fits", KNOWN.shape)[1:], KNOWN[1:])
    assert not read_mask(tmp_path / "nan.fits", KNOWN.shape)[0].any()


def test_a_mask_is_turned_upright_like_its_image(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(np.rot90(WHITE).copy()).save(tmp_path / "mask.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", KNOWN.shape), KNOWN)


def test_another_size_is_refused_and_both_are_named(tmp_path):
    write_png(tmp_path / "mask.png", _stack(WHITE))
    with pytest.raises(ImageError, match="37 x 23 pixels but the image is 23 x 37"):
        read_mask(tmp_path / "mask.png", (37, 23))


@pytest.mark.parametrize(
    ("level", "invert", "words"), [(0, False, "invert"), (1, False, "white"), (255, True, "black")]
)
def test_a_mask_with_nothing_known_is_refused(tmp_path, level, invert, words):
    write_png(tmp_path / "mask.png", _stack(level))
    with pytest.raises(ImageError, match=f"no known pixel.*{words}") as refused:
        read_mask(tmp_path / "mask.png", KNOWN.shape, invert=invert)
    assert "invert=" not in str(refused.value)  # the function's own word, which no user of a task has


def test_a_mask_over_the_pixel_limit_is_refused(tmp_path):
    write_png(tmp_path / "mask.png", _stack(WHITE))
    with pytest.raises(ImageError, match="limit of 100"):
        read_mask(tmp_path / "mask.png", KNOWN.shape, max_pixels=100)
