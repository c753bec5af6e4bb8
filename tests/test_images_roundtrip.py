"""Read and write: values, bit depth, channels and metadata survive, judged by readers other than libvips."""

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
import pytest
import tifffile
from image_samples import noise, read_png, smooth, write_png
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import IFDRational

from dipengine.images import Image, Metadata, read_image, write_image

ICC = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><x:any name='value'/></x:xmpmeta>"


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_keeps_every_bit_and_splits_alpha_off(tmp_path, dtype, channels):
    sample = noise(dtype, channels)
    write_png(tmp_path / "in.png", sample)
    image = read_image(tmp_path / "in.png")
    colours = channels - 1 if channels in (2, 4) else channels
    assert image.format == "png" and image.dtype == dtype and image.channels == colours
    np.testing.assert_array_equal(image.pixels, sample[..., :colours])
    if channels in (2, 4):
        np.testing.assert_array_equal(image.alpha, sample[..., -1])
    else:
        assert image.alpha is None
    write_image(tmp_path / "out.png", image.pixels, image, alpha=image.alpha)
    np.testing.assert_array_equal(read_png(tmp_path / "out.png"), sample)


def test_a_16_bit_rgb_png_keeps_its_low_bits(tmp_path):
    sample = noise("uint16", 3)
    sample[..., 0] = 40000 + np.arange(37) % 256  # alive in the low byte alone
    write_png(tmp_path / "in.png", sample)
    image = read_image(tmp_path / "in.png")
    assert len(np.unique(image.pixels[..., 0])) == 37
    write_image(tmp_path / "out.png", image.pixels, image)
    np.testing.assert_array_equal(read_png(tmp_path / "out.png"), sample)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "int32", "float32"])
@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_tiff_keeps_values_dtype_and_channels(tmp_path, dtype, channels):
    sample = noise(dtype, channels)
    stored = sample[..., 0] if channels == 1 else sample
    photometric = "rgb" if channels in (3, 4) else "minisblack"
    tifffile.imwrite(tmp_path / "in.tif", stored, photometric=photometric,
                     planarconfig=None if channels == 1 else "contig")
    image = read_image(tmp_path / "in.tif")
    assert image.dtype == dtype and image.channels == (3 if channels == 4 else channels)
    write_image(tmp_path / "out.tiff", image.pixels, image, alpha=image.alpha)
    back = tifffile.imread(tmp_path / "out.tiff")
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, stored)


def test_float64_pixels_go_into_tiff_unrounded(tmp_path):
    sample = noise("float64", 1)
    write_image(tmp_path / "out.tif", sample, Image(pixels=sample))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), sample[..., 0])


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_of_64_bits_a_sample_is_read(tmp_path, dtype, channels, planes, compression):
    sample = noise(dtype, channels)
    stored = np.moveaxis(sample, -1, 0) if planes == "separate" else sample
    photometric = "rgb" if channels in (3, 4) else "minisblack"
    tifffile.imwrite(tmp_path / "in.tif", sample[..., 0] if channels == 1 else stored, photometric=photometric,
                     planarconfig=None if channels == 1 else planes, compression=compression, iccprofile=ICC,
                     resolution=(240, 120), resolutionunit="inch")
    image = read_image(tmp_path / "in.tif")
    colours = channels - 1 if channels in (2, 4) else channels
    assert image.format == "tiff" and image.dtype == dtype and image.channels == colours
    np.testing.assert_array_equal(image.pixels, sample[..., :colours])
    if channels in (2, 4):
        np.testing.assert_array_equal(image.alpha, sample[..., -1])
    assert image.metadata.icc_profile == ICC
    assert image.metadata.resolution == pytest.approx((240 / 25.4, 120 / 25.4))


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_float64_tiff_comes_back_as_it_was_written(tmp_path, orientation):
    sample = noise("float64", 3)
    like = Image(sample, metadata=Metadata(orientation=orientation, resolution=(8.0, 4.0),
                                           fields={"icc-profile-data": ICC, "xmp-data": XMP}))
    write_image(tmp_path / "out.tif", sample, like)
    back = read_image(tmp_path / "out.tif")
    np.testing.assert_array_equal(back.pixels, sample)
    assert back.metadata.orientation == orientation
    assert back.metadata.resolution == pytest.approx((8.0, 4.0), rel=1e-6)  # a ratio of whole numbers in the file
    assert dict(back.metadata.fields) == dict(like.metadata.fields)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_png_becomes_16_bit_tiff(tmp_path, channels):
    sample = noise("uint16", channels)
    write_png(tmp_path / "in.png", sample)
    image = read_image(tmp_path / "in.png")
    write_image(tmp_path / "out.tif", image.pixels, image)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif").reshape(sample.shape), sample)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_written_close_to_its_pixels_and_without_subsampling(tmp_path, channels):
    sample = smooth(channels=channels)
    write_image(tmp_path / "out.jpg", sample, Image(pixels=sample))
    with PIL.Image.open(tmp_path / "out.jpg") as opened:
        assert opened.mode == ("L" if channels == 1 else "RGB")
        assert all(layer[1:3] == (1, 1) for layer in opened.layer)
        decoded = np.asarray(opened, dtype=float).reshape(sample.shape)
    assert np.abs(decoded - sample).mean() < 2
    image = read_image(tmp_path / "out.jpg")
    assert image.format == "jpeg" and np.abs(image.pixels - decoded).max() <= 2  # decoders differ by rounding


@pytest.mark.parametrize("channels", [3, 4])
def test_webp_is_lossless_also_under_transparent_pixels(tmp_path, channels):
    sample = noise("uint8", channels)
    if channels == 4:
        sample[:5, :, 3] = 0
    alpha = sample[..., 3] if channels == 4 else None
    write_image(tmp_path / "out.webp", sample[..., :3], Image(pixels=sample[..., :3]), alpha=alpha)
    with PIL.Image.open(tmp_path / "out.webp") as opened:
        np.testing.assert_array_equal(np.asarray(opened), sample)
    image = read_image(tmp_path / "out.webp")
    np.testing.assert_array_equal(image.pixels, sample[..., :3])


def test_cmyk_stays_cmyk_and_is_not_turned_into_rgb(tmp_path):
    sample = noise("uint8", 4)
    tifffile.imwrite(tmp_path / "in.tif", sample, photometric="separated", planarconfig="contig")
    image = read_image(tmp_path / "in.tif")
    assert image.channels == 4 and image.alpha is None
    write_image(tmp_path / "out.tif", image.pixels, image)
    with tifffile.TiffFile(tmp_path / "out.tif") as back:
        assert back.pages[0].photometric.name == "SEPARATED"
        np.testing.assert_array_equal(back.asarray(), sample)
    with pytest.raises(OSError, match="CMYK"):
        write_image(tmp_path / "out.png", image.pixels, image)


def test_palette_and_one_bit_images_become_8_bit(tmp_path):
    PIL.Image.fromarray(smooth()).quantize(16).save(tmp_path / "palette.png")
    with PIL.Image.open(tmp_path / "palette.png") as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png").pixels, expected)
    bits = noise("uint8", 1)[..., 0] > 127
    PIL.Image.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png").pixels[..., 0], bits * np.uint8(255))


@pytest.mark.parametrize("target", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("origin", ["png", "jpg", "webp", "tif"])
def test_profile_and_resolution_survive_into_every_container(tmp_path, origin, target):
    exif = PIL.Image.Exif()
    exif[0x010F] = "Maker & Sons"
    exif.get_ifd(0x8769)[0x829A] = IFDRational(1, 250)  # ExposureTime
    PIL.Image.fromarray(smooth()).save(tmp_path / f"in.{origin}", icc_profile=ICC, exif=exif, dpi=(240, 240))
    image = read_image(tmp_path / f"in.{origin}")
    assert image.metadata.icc_profile == ICC
    write_image(tmp_path / f"out.{target}", image.pixels, image)
    with PIL.Image.open(tmp_path / f"out.{target}") as opened:
        assert opened.info["icc_profile"] == ICC
        if "webp" not in (origin, target):  # the container itself has no resolution
            assert opened.info["dpi"] == pytest.approx((240, 240), abs=0.01)
        if "tif" not in (origin, target):  # libvips carries EXIF in and out of the other three
            assert opened.getexif()[0x010F] == "Maker & Sons"
            assert float(opened.getexif().get_ifd(0x8769)[0x829A]) == pytest.approx(1 / 250)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_xmp_survives(tmp_path, suffix):
    extra = {"tiffinfo": {700: XMP}} if suffix == "tif" else {"xmp": XMP}
    if suffix == "png":
        extra = {"pnginfo": _png_text("XML:com.adobe.xmp", XMP.decode())}
    PIL.Image.fromarray(smooth()).save(tmp_path / f"in.{suffix}", **extra)
    image = read_image(tmp_path / f"in.{suffix}")
    write_image(tmp_path / f"out.{suffix}", image.pixels, image)
    if suffix == "png":  # libvips writes it compressed
        with PIL.Image.open(tmp_path / "out.png") as opened:
            assert opened.text["XML:com.adobe.xmp"].encode() == XMP
    else:
        assert XMP in (tmp_path / f"out.{suffix}").read_bytes()


def _png_text(key, value):
    info = PngInfo()
    info.add_itxt(key, value)
    return info


def test_a_profile_that_does_not_fit_the_channels_written_is_left_out(tmp_path):
    grey_profile = ICC[:16] + b"GRAY" + ICC[20:]
    PIL.Image.fromarray(smooth(channels=1)[..., 0]).save(tmp_path / "in.tif", icc_profile=grey_profile)
    image = read_image(tmp_path / "in.tif")
    write_image(tmp_path / "out.webp", image.pixels, image)  # WebP has no grey, RGB is written
    with PIL.Image.open(tmp_path / "out.webp") as opened:
        assert "icc_profile" not in opened.info
    write_image(tmp_path / "out.tif", image.pixels, image)
    with PIL.Image.open(tmp_path / "out.tif") as opened:
        assert opened.info["icc_profile"] == grey_profile


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_pixels_come_upright_and_go_back_into_the_stored_layout(tmp_path, suffix, orientation):
    sample = smooth((24, 40))
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}, "jpg": {"quality": 97, "subsampling": 0}}.get(suffix, {})
    PIL.Image.fromarray(sample).save(tmp_path / f"in.{suffix}", exif=exif, **options)
    tolerance = 6 if suffix == "jpg" else 0  # quantisation
    image = read_image(tmp_path / f"in.{suffix}")
    plain = PIL.Image.fromarray(sample)
    plain.getexif()[0x0112] = orientation
    upright = np.asarray(PIL.ImageOps.exif_transpose(plain))
    assert image.pixels.shape == upright.shape and image.metadata.orientation == orientation
    np.testing.assert_allclose(image.pixels.astype(int), upright.astype(int), atol=tolerance)

    write_image(tmp_path / f"out.{suffix}", image.pixels, image)
    again = read_image(tmp_path / f"out.{suffix}")
    assert again.metadata.orientation == orientation
    np.testing.assert_allclose(again.pixels.astype(int), image.pixels.astype(int), atol=tolerance)
    assert _stored_layout(tmp_path / f"out.{suffix}").shape == sample.shape
    np.testing.assert_allclose(_stored_layout(tmp_path / f"out.{suffix}").astype(int), sample, atol=tolerance)


def _stored_layout(path):
    if path.suffix == ".tif":
        return tifffile.imread(path)  # Pillow turns TIFF on its own
    with PIL.Image.open(path) as opened:
        return np.asarray(opened)


def test_upscaling_a_turned_photograph_scales_both_stored_sides_and_the_resolution(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(smooth((24, 40))).save(tmp_path / "in.png", exif=exif, dpi=(100, 100))
    image = read_image(tmp_path / "in.png")
    big = image.pixels.repeat(2, axis=0).repeat(2, axis=1)
    write_image(tmp_path / "out.png", big, image, scale=2)
    with PIL.Image.open(tmp_path / "out.png") as opened:
        assert opened.size == (80, 48) and opened.info["dpi"] == pytest.approx((200, 200), abs=0.1)


def test_the_digest_is_that_of_the_file(tmp_path):
    import hashlib

    write_png(tmp_path / "in.png", noise("uint8"))
    expected = hashlib.sha256((tmp_path / "in.png").read_bytes()).hexdigest()
    assert read_image(tmp_path / "in.png").sha256 == expected


def test_odd_file_names_are_not_taken_for_options(tmp_path):
    path = tmp_path / "shot[1,2] été %d.png"
    write_png(path, noise("uint8"))
    image = read_image(path)
    out = tmp_path / "out[compression=9].png"
    write_image(out, image.pixels, image)
    np.testing.assert_array_equal(read_png(out), image.pixels)


def test_an_edited_file_is_read_anew(tmp_path):
    write_png(tmp_path / "in.png", noise("uint8", seed=1))
    read_image(tmp_path / "in.png")
    write_png(tmp_path / "in.png", noise("uint8", seed=2))
    np.testing.assert_array_equal(read_image(tmp_path / "in.png").pixels, noise("uint8", seed=2))
