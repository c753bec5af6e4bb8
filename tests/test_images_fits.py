"""FITS: values, missing pixels, header and world coordinates survive, judged by astropy."""

import gzip
import sys

import numpy as np
import pytest
import tifffile
from astropy.io import fits
from astropy.wcs import WCS
from image_samples import noise

from dipengine._version import __version__
from dipengine.errors import DependencyError, ImageError
from dipengine.images import check_writable, read_image, write_image

pytestmark = pytest.mark.filterwarnings("ignore::astropy.wcs.FITSFixedWarning")

GZIP = b"\x1f\x8b"
PIXELS = np.array([[0.0, 0.0], [3.0, 5.0], [36.5, 22.0], [-0.5, 10.25]])


def sky_header(kind="cd"):
    """A tangent-plane WCS, rotated, with unequal pixel sides."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = [83.63, 22.01], [18.25, 11.5]
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    if kind == "cd":
        wcs.wcs.cd = turn * [[-2e-4], [3e-4]]
    else:
        wcs.wcs.cdelt, wcs.wcs.pc = [-2e-4, 3e-4], turn
    header = wcs.to_header()
    if kind == "cd":  # astropy writes a CD matrix as PC with CDELT 1
        for i in (1, 2):
            for j in (1, 2):
                header[f"CD{i}_{j}"] = wcs.wcs.cd[i - 1, j - 1]
                header.remove(f"PC{i}_{j}", ignore_missing=True)
            header.remove(f"CDELT{i}", ignore_missing=True)
    if kind == "sip":
        header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
        header.update({"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-3, "A_1_1": -2e-3, "B_0_2": 3e-3, "B_1_0": 1e-2})
    header["OBJECT"] = ("M1", "what was looked at")
    header["EXPTIME"] = 120.5
    header.add_comment("taken at night")
    return header


DTYPES = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_values_and_header_survive(tmp_path, dtype, channels):
    sample = noise(dtype, channels)
    stored = np.moveaxis(sample, -1, 0) if channels > 1 else sample[..., 0]
    fits.PrimaryHDU(stored, sky_header()).writeto(tmp_path / "in.fits")
    image = read_image(tmp_path / "in.fits")
    assert image.format == "fits" and image.in_data_units and image.dtype == dtype and image.dtype.isnative
    assert image.known is None and image.alpha is None
    np.testing.assert_array_equal(image.pixels, sample)

    write_image(tmp_path / "out.fits", image.pixels, image)
    with fits.open(tmp_path / "out.fits") as back:
        header = back[0].header
        assert back[0].data.dtype.name == dtype
        np.testing.assert_array_equal(back[0].data, stored)
        before = fits.getheader(tmp_path / "in.fits")
        packing = ("HISTORY", "BSCALE", "BZERO", "")  # astropy restates scale and zero as the dtype needs them
        assert [c.image for c in header.cards if c.keyword not in packing] == [
            c.image for c in before.cards if c.keyword not in packing
        ]
        assert list(header["HISTORY"]) == [f"restored by dipengine {__version__}"]
        np.testing.assert_allclose(WCS(header).celestial.wcs_pix2world(PIXELS, 0),
                                   WCS(before).celestial.wcs_pix2world(PIXELS, 0), rtol=1e-13)
    assert (tmp_path / "out.fits").stat().st_size % 2880 == 0


def test_nan_is_missing_and_the_pixel_is_known_only_in_all_channels(tmp_path):
    sample = noise("float32", 3)
    sample[2, 3, 1] = np.nan
    sample[7, 8] = np.nan
    fits.PrimaryHDU(np.moveaxis(sample, -1, 0)).writeto(tmp_path / "in.fits")
    image = read_image(tmp_path / "in.fits")
    expected = np.ones(sample.shape[:2], bool)
    expected[2, 3] = expected[7, 8] = False
    np.testing.assert_array_equal(image.known, expected)
    np.testing.assert_array_equal(image.pixels, sample)


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_blank_is_missing_integers_stay_integers_and_the_card_goes(tmp_path, dtype):
    sample = noise(dtype, 1)
    hdu = fits.PrimaryHDU(sample[..., 0])
    hdu.header["BLANK"] = int(sample[4, 5, 0]) - (32768 if dtype == "uint16" else 0)
    hdu.writeto(tmp_path / "in.fits")
    image = read_image(tmp_path / "in.fits")
    assert image.dtype == dtype and not image.known[4, 5]
    np.testing.assert_array_equal(image.known, sample[..., 0] != sample[4, 5, 0])
    write_image(tmp_path / "out.fits", image.pixels, image)  # now a restored value may be the former BLANK
    with fits.open(tmp_path / "out.fits") as back:
        assert "BLANK" not in back[0].header
        np.testing.assert_array_equal(back[0].data, sample[..., 0])


def test_scaled_integers_are_read_as_the_real_numbers_they_stand_for(tmp_path):
    sample = noise("int16", 1)[..., 0]
    hdu = fits.PrimaryHDU(sample)
    hdu.writeto(tmp_path / "in.fits")
    with fits.open(tmp_path / "in.fits", mode="update", do_not_scale_image_data=True) as hdus:
        hdus[0].header["BSCALE"], hdus[0].header["BZERO"] = 0.25, 1000.0
    image = read_image(tmp_path / "in.fits")
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image.pixels[..., 0], sample * 0.25 + 1000)
    write_image(tmp_path / "out.fits", image.pixels, image)
    np.testing.assert_array_equal(fits.getdata(tmp_path / "out.fits"), sample * 0.25 + 1000)


def test_other_hdus_stay_byte_for_byte_around_the_image(tmp_path):
    sample = noise("float32", 1)[..., 0]
    primary = fits.PrimaryHDU()
    primary.header["TELESCOP"] = "one"
    table = fits.BinTableHDU.from_columns([fits.Column("flux", "E", array=np.arange(5.0))], name="CAT")
    science = fits.ImageHDU(sample, sky_header(), name="SCI")
    fits.HDUList([primary, table, science, fits.ImageHDU(sample * 0 + 1, name="ERR")]).writeto(tmp_path / "in.fits")
    image = read_image(tmp_path / "in.fits")
    np.testing.assert_array_equal(image.pixels[..., 0], sample)
    write_image(tmp_path / "out.fits", image.pixels + 1, image)
    with fits.open(tmp_path / "in.fits") as before, fits.open(tmp_path / "out.fits") as after:
        assert [hdu.name for hdu in after] == ["PRIMARY", "CAT", "SCI", "ERR"]
        np.testing.assert_array_equal(after["SCI"].data, sample + 1)
        assert after["SCI"].header["OBJECT"] == "M1"
        for name in ("PRIMARY", "CAT", "ERR"):
            assert _raw(tmp_path / "in.fits", before[name]) == _raw(tmp_path / "out.fits", after[name])
    write_image(tmp_path / "big.fits", image.pixels.repeat(2, 0).repeat(2, 1), image, scale=2)
    with fits.open(tmp_path / "big.fits") as back:  # planes and catalogues in old coordinates are left out
        assert [hdu.name for hdu in back] == ["PRIMARY", "SCI"] and back[0].header["TELESCOP"] == "one"


def _raw(path, hdu):
    place = hdu.fileinfo()
    return path.read_bytes()[place["hdrLoc"] : place["datLoc"] + place["datSpan"]]


def test_a_tile_compressed_image_is_read_and_written_back_plain(tmp_path):
    sample = noise("uint16", 1)[..., 0]
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(sample, sky_header(), name="SCI")]).writeto(tmp_path / "in.fits")
    image = read_image(tmp_path / "in.fits")
    np.testing.assert_array_equal(image.pixels[..., 0], sample)
    write_image(tmp_path / "out.fits", image.pixels, image)
    with fits.open(tmp_path / "out.fits") as back:
        assert isinstance(back["SCI"], fits.ImageHDU) and back["SCI"].header["OBJECT"] == "M1"
        np.testing.assert_array_equal(back["SCI"].data, sample)


@pytest.mark.parametrize("target", ["out.fits", "out.FITS.gz", "out.fit.gz"])
def test_a_gzip_compressed_file_is_read_and_written_with_all_its_hdus(tmp_path, target):
    sample = noise("int16", 1)[..., 0]
    table = fits.BinTableHDU.from_columns([fits.Column("flux", "E", array=np.arange(5.0))], name="CAT")
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(sample, sky_header(), name="SCI"), table]
    fits.HDUList(hdus).writeto(tmp_path / "in.fits.gz")
    assert (tmp_path / "in.fits.gz").read_bytes()[:2] == GZIP
    image = read_image(tmp_path / "in.fits.gz")
    np.testing.assert_array_equal(image.pixels[..., 0], sample)
    write_image(tmp_path / target, image.pixels + 1, image)
    assert ((tmp_path / target).read_bytes()[:2] == GZIP) == target.endswith("gz")
    with fits.open(tmp_path / target) as back:
        assert [hdu.name for hdu in back] == ["PRIMARY", "SCI", "CAT"] and back["SCI"].header["OBJECT"] == "M1"
        np.testing.assert_array_equal(back["SCI"].data, sample + 1)
        np.testing.assert_array_equal(back["CAT"].data["flux"], np.arange(5.0))


def test_gzip_files_are_the_same_bytes_for_the_same_image(tmp_path):
    fits.PrimaryHDU(noise("int16", 1)[..., 0]).writeto(tmp_path / "in.fits")
    image = read_image(tmp_path / "in.fits")
    for name in ("a.fits.gz", "b.fits.gz"):
        write_image(tmp_path / name, image.pixels, image)
    assert (tmp_path / "a.fits.gz").read_bytes() == (tmp_path / "b.fits.gz").read_bytes()


def test_damaged_foreign_and_explosive_gzip_files_are_refused(tmp_path):
    hdus = [fits.PrimaryHDU(noise("int16", 1)[..., 0]), fits.ImageHDU(np.zeros((500, 500)))]
    fits.HDUList(hdus).writeto(tmp_path / "in.fits.gz")
    whole = (tmp_path / "in.fits.gz").read_bytes()
    (tmp_path / "head.fits.gz").write_bytes(whole[:12])
    (tmp_path / "cut.fits.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.fits.gz").write_bytes(gzip.compress(b"once upon a time"))
    cases = {"head": "holds no FITS", "cut": "damaged", "text": "holds no FITS", "in": "bytes besides its image"}
    for name, words in cases.items():
        with pytest.raises(ImageError, match=words) as error:
            read_image(tmp_path / f"{name}.fits.gz", max_pixels=23 * 37)
        assert "\n" not in str(error.value) and ";" in str(error.value)


@pytest.mark.parametrize("kind", ["cd", "pc", "sip"])
@pytest.mark.parametrize("scale", [2, 3, 8])
def test_after_upscaling_every_corner_keeps_its_place_in_the_sky(tmp_path, kind, scale):
    sample = noise("float32", 1)
    fits.PrimaryHDU(sample[..., 0], sky_header(kind)).writeto(tmp_path / "in.fits")
    image = read_image(tmp_path / "in.fits")
    big = sample.repeat(scale, axis=0).repeat(scale, axis=1)
    write_image(tmp_path / "out.fits", big, image, scale=scale)
    header = fits.getheader(tmp_path / "out.fits")
    # Counting from the image's outer edge, a position p (pixels) lies at p * scale; pixel centres are half inside.
    edges = PIXELS + 0.5
    was = WCS(sky_header(kind)).all_pix2world(edges - 0.5, 0)
    now = WCS(header).all_pix2world(edges * scale - 0.5, 0)
    np.testing.assert_allclose(now, was, rtol=0, atol=1e-11)
    assert (header["NAXIS1"], header["NAXIS2"]) == (37 * scale, 23 * scale)


def test_an_alternative_wcs_and_iraf_keywords_are_scaled_too(tmp_path):
    header = sky_header("pc")
    header.update({"CTYPE1A": "LINEAR", "CTYPE2A": "LINEAR", "CRPIX1A": 1.0, "CRPIX2A": 1.0, "CRVAL1A": 101.0,
                   "CRVAL2A": 201.0, "CDELT1A": 1.0, "CDELT2A": 1.0})
    header.update({"LTV1": -100.0, "LTV2": -200.0, "LTM1_1": 1.0, "LTM2_2": 1.0})
    fits.PrimaryHDU(noise("float32", 1)[..., 0], header).writeto(tmp_path / "in.fits")
    image = read_image(tmp_path / "in.fits")
    write_image(tmp_path / "out.fits", image.pixels.repeat(2, 0).repeat(2, 1), image, scale=2)
    back = fits.getheader(tmp_path / "out.fits")
    # Both say the same of the first, half-size pixel: it lies a quarter of a parent's pixel before 101, 201.
    np.testing.assert_allclose(WCS(back, key="A").wcs_pix2world([[1, 1]], 1), [[100.75, 200.75]])
    assert (1 - back["LTV1"]) / back["LTM1_1"] == pytest.approx(100.75)
    assert (1 - back["LTV2"]) / back["LTM2_2"] == pytest.approx(200.75)


def test_the_spectral_axis_of_a_cube_keeps_its_coordinates(tmp_path):
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CTYPE3": "WAVE", "CRPIX1": 3.0, "CRPIX2": 4.0,
                          "CRPIX3": 1.0, "CRVAL3": 5e-7, "CDELT1": -1e-4, "CDELT2": 1e-4, "CDELT3": 1e-9,
                          "PC1_3": 0.25, "PC3_1": 0.5})
    sample = noise("float32", 3)
    fits.PrimaryHDU(np.moveaxis(sample, -1, 0), header).writeto(tmp_path / "in.fits")
    image = read_image(tmp_path / "in.fits")
    write_image(tmp_path / "out.fits", sample.repeat(2, 0).repeat(2, 1), image, scale=2)
    points = np.array([[1.0, 2.0, 0.0], [7.0, 3.0, 2.0]])
    doubled = (points + [0.5, 0.5, 0]) * [2, 2, 1] - [0.5, 0.5, 0]
    np.testing.assert_allclose(WCS(fits.getheader(tmp_path / "out.fits")).wcs_pix2world(doubled, 0),
                               WCS(header).wcs_pix2world(points, 0), rtol=1e-10)


def test_leading_axes_of_length_one_are_kept(tmp_path):
    sample = noise("float32", 1)
    fits.PrimaryHDU(sample[..., 0][None, None]).writeto(tmp_path / "in.fits")
    image = read_image(tmp_path / "in.fits")
    np.testing.assert_array_equal(image.pixels, sample)
    write_image(tmp_path / "out.fits", image.pixels, image)
    assert fits.getdata(tmp_path / "out.fits").shape == (1, 1) + sample.shape[:2]


def test_fits_and_tiff_convert_into_each_other(tmp_path):
    sample = noise("float32", 3)
    fits.PrimaryHDU(np.moveaxis(sample, -1, 0), sky_header()).writeto(tmp_path / "in.fits")
    image = read_image(tmp_path / "in.fits")
    write_image(tmp_path / "out.tif", image.pixels, image)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), sample)
    from_tiff = read_image(tmp_path / "out.tif")
    write_image(tmp_path / "back.fits", from_tiff.pixels, from_tiff)
    np.testing.assert_array_equal(np.moveaxis(fits.getdata(tmp_path / "back.fits"), 0, -1), sample)


def _write_bad(path, kind):
    sample = noise("float32", 1)[..., 0]
    if kind == "infinity":
        sample[0, 0] = np.inf
    if kind == "all NaN":
        sample[:] = np.nan
    if kind == "table":
        fits.BinTableHDU.from_columns([fits.Column("a", "E", array=np.arange(3.0))]).writeto(path)
    elif kind == "spectrum":
        fits.PrimaryHDU(sample[0]).writeto(path)
    elif kind == "hypercube":
        fits.PrimaryHDU(np.zeros((2, 3, 4, 5))).writeto(path)
    elif kind in ("infinity", "all NaN"):
        fits.PrimaryHDU(sample).writeto(path)
    else:
        fits.PrimaryHDU(sample).writeto(path)
        data = path.read_bytes()
        path.write_bytes({"cut data": data[:-2880], "cut header": data[:1000]}.get(kind, data.replace(
            b"NAXIS1  =                   37", b"NAXIS1  =               900000")))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("infinity", "infinite"),
        ("all NaN", "no known pixel"),
        ("table", "no image"),
        ("spectrum", "array of 37"),
        ("hypercube", "2 x 3 x 4 x 5"),
        ("cut data", "cut short"),
        ("cut header", "cut short"),
        ("lying header", "cut short"),
    ],
)
def test_a_bad_file_is_refused_with_one_sentence(tmp_path, kind, words):
    _write_bad(tmp_path / "in.fits", kind)
    with pytest.raises(ImageError, match=words) as error:
        read_image(tmp_path / "in.fits")
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_a_bomb_is_refused_from_its_header(tmp_path):
    header = fits.Header([("SIMPLE", True), ("BITPIX", -64), ("NAXIS", 2), ("NAXIS1", 100_000), ("NAXIS2", 100_000)])
    (tmp_path / "in.fits").write_text(header.tostring())
    with pytest.raises(ImageError, match="100000 x 100000"):
        read_image(tmp_path / "in.fits")


def test_without_astropy_the_message_names_the_command(tmp_path, monkeypatch):
    fits.PrimaryHDU(noise("float32", 1)[..., 0]).writeto(tmp_path / "in.fits")
    monkeypatch.setitem(sys.modules, "astropy.io", None)
    monkeypatch.setitem(sys.modules, "astropy", None)
    for attempt in (lambda: read_image(tmp_path / "in.fits"), lambda: check_writable(tmp_path / "out.fits")):
        with pytest.raises(DependencyError, match=r'pip install "dipengine\[astro\]"'):
            attempt()
