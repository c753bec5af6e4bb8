"""What is delivered agrees with what was measured: with the small image (super-resolution), with the steps of a JPEG.

The oracles are not of this project: PyTorch's convolution for the downsampling, libjpeg by way of Pillow for the coding.
"""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from skimage import data

import dipengine
from dipengine.images import from_array, read_image
from dipengine.images.jpeg_coding import JpegCoding, coding_in
from dipengine.restoration import plan_restoration
from dipengine.fitting.settings import Settings
from dipengine.tasks import quantisation
from dipengine.tasks.back_projection import BackProjection, matrix
from dipengine.tasks.downsampling import KERNELS, Downsampling
from dipengine.tasks.quantisation import Quantisation, checked, found_in
from dipengine.tasks.super_resolution import FACTORS

SUBSAMPLING = {"4:4:4": (1, 1), "4:2:2": (1, 2), "4:2:0": (2, 2)}


def photograph(height: int = 120, width: int = 152, channels: int = 3) -> np.ndarray:
    """uint8 [height, width, channels]."""
    cut = data.astronaut()[40 : 40 + height, 150 : 150 + width]
    return np.ascontiguousarray(cut if channels == 3 else cut[:, :, 1:2])


def encoded(pixels: np.ndarray, path=None, **options):
    """A JPEG of pixels [H, W, C] by Pillow: its file, written to `path` where that is given."""
    file = io.BytesIO() if path is None else path
    Pillow.fromarray(pixels if pixels.shape[2] != 1 else pixels[:, :, 0]).save(file, "JPEG", **options)
    return file


def unit(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / 255


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square, in levels."""
    return float(255 * np.sqrt(np.mean(np.square(one.astype(np.float64) - other))))


def damaged(clean: np.ndarray, seed: int) -> np.ndarray:
    """What a generator might paint: blurred and noisy, float32 in [0, 1]."""
    blurred = (clean + np.roll(clean, 1, 0) + np.roll(clean, 1, 1)) / 3
    return np.clip(blurred + np.random.default_rng(seed).normal(0, 0.03, clean.shape), 0, 1).astype(np.float32)


# ---- super-resolution ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_matrix_is_the_operator(kernel, factor):
    operator = Downsampling(factor, kernel)
    image = np.random.default_rng(factor).random((37, 22, 2))
    expected = operator.apply(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    got = np.einsum("ih,hwc,jw->ijc", matrix(operator, 37), image, matrix(operator, 22))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (64, 47)], ids=str)
@pytest.mark.parametrize("kernel, factor", [("lanczos2", 2), ("lanczos2", 3), ("lanczos3", 4), ("box", 8), ("gauss12", 2)])
def test_what_is_delivered_is_the_small_image_again(kernel, factor, size):
    operator, rng = Downsampling(factor, kernel), np.random.default_rng(1)
    truth, painted = rng.random((*size, 3)), rng.random((*size, 3)).astype(np.float32)
    small = apply(operator, truth)
    agreement = BackProjection(operator, small.astype(np.float32))
    delivered = agreement.apply(painted)
    assert delivered.dtype == np.float32
    assert np.abs(apply(operator, delivered) - small).max() < 0.01 * np.abs(apply(operator, painted) - small).max() + 1e-6
    assert distance(delivered, truth) < distance(painted, truth) + 1e-4
    np.testing.assert_allclose(agreement.apply(truth.astype(np.float32)), truth, rtol=0, atol=1e-5)


def apply(operator: Downsampling, image: np.ndarray) -> np.ndarray:
    return operator.apply(torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


def test_where_the_small_image_is_unknown_it_stays_as_painted():
    operator, rng = Downsampling(2, "lanczos2"), np.random.default_rng(2)
    painted, small = rng.random((32, 24, 1)).astype(np.float32), rng.random((16, 12, 1)).astype(np.float32)
    known = rng.random((16, 12)) < 0.7
    small[~known] = 1e6
    got = apply(operator, BackProjection(operator, small, known).apply(painted))
    np.testing.assert_allclose(got[known], small[known], rtol=0, atol=0.01)
    np.testing.assert_allclose(got[~known], apply(operator, painted)[~known], rtol=0, atol=0.01)


def test_eight_bits_stay_in_their_range_and_floats_may_leave_it():
    operator = Downsampling(2, "lanczos2")
    painted, small = np.full((16, 16, 1), 0.9, np.float32), np.zeros((8, 8, 1), np.float32)
    small[4, 4] = 1
    bounded, free = (BackProjection(operator, small, bounded=bound).apply(painted) for bound in (True, False))
    assert bounded.min() == 0 and bounded.max() <= 1
    assert free.min() < -0.01
    # What was cut off is made up for around it, as far as that goes.
    away = [np.abs(apply(operator, image) - small).mean() for image in (bounded, np.clip(free, 0, 1))]
    assert away[0] < 0.8 * away[1]
    planned = [
        plan_restoration(from_array(pixels)[0], "superres", {"factor": 2}, Settings(channels=(4,), levels=1)).problem
        for pixels in (photograph(16, 16), photograph(16, 16) / 7.0)
    ]
    assert [problem.agreement._bounded for problem in planned] == [True, False]


# ---- JPEG: the coding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subsampling", SUBSAMPLING)
@pytest.mark.parametrize("quality", [5, 25, 50, 75, 92])
def test_the_coding_of_a_file_is_read_and_found_in_its_pixels_too(tmp_path, quality, subsampling):
    path = tmp_path / "a.jpg"
    encoded(photograph(112, 160), path, quality=quality, subsampling=subsampling)
    image = read_image(path)
    coding, tables = image.metadata.jpeg, Pillow.open(path).quantization
    assert [np.ravel(steps).tolist() for steps in coding.steps] == [tables[0], tables[1], tables[1]]
    assert coding.sampling == ((1, 1), SUBSAMPLING[subsampling], SUBSAMPLING[subsampling])
    shown = replace(coding, certain=True)
    assert checked(unit(image.pixels), coding) == shown
    found = found_in(unit(image.pixels))
    assert found.steps[0] == coding.steps[0]
    # Of few colours nothing tells how they were sampled: then their steps are not known, never wrong.
    assert found == shown or (quality < 50 and found.steps[1:] == (None, None))
    if image.height % 16 == 0 and image.width % 16 == 0:  # so that blocks begin in the corner
        turned = found_in(np.ascontiguousarray(np.rot90(unit(image.pixels))))
        assert np.transpose(turned.steps[0]).tolist() == np.array(coding.steps[0]).tolist()
        assert turned.sampling[1] in ((1, 1), coding.sampling[1][::-1])


def test_grey_has_one_component(tmp_path):
    encoded(photograph(channels=1), tmp_path / "a.jpg", quality=40)
    image = read_image(tmp_path / "a.jpg")
    assert len(image.metadata.jpeg.steps) == 1
    assert found_in(unit(image.pixels)) == replace(image.metadata.jpeg, certain=True)


@pytest.mark.parametrize("kind", ["cmyk", "rgb", "png", "cut short"])
def test_no_coding_where_there_is_none(tmp_path, kind):
    path, picture = tmp_path / "a", Pillow.fromarray(photograph())
    if kind == "cmyk":
        picture.convert("CMYK").save(path, "JPEG")
    elif kind == "rgb":
        picture.save(path, "JPEG", keep_rgb=True)
    elif kind == "png":
        picture.save(path, "PNG")
    else:
        path.write_bytes(encoded(photograph()).getvalue()[:200])
    assert coding_in(str(path), 1) is None


def test_what_was_changed_since_shows_no_coding():
    decoded = np.asarray(Pillow.open(encoded(photograph(), quality=40)))
    coding = found_in(unit(decoded))
    assert coding is not None
    for changed in (photograph(), decoded[3:, 5:], np.asarray(Pillow.fromarray(decoded).resize((140, 110)))):
        assert found_in(unit(changed)) is None
        assert checked(unit(changed), coding) is None
    assert found_in(unit(decoded[:7])) is None
    assert checked(unit(decoded[:, :, :1]), coding) is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_window_of_an_upright_picture_knows_where_its_blocks_lie(tmp_path, orientation):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    encoded(photograph(), tmp_path / "a.jpg", quality=30, subsampling="4:4:4", exif=exif)
    image = read_image(tmp_path / "a.jpg")
    assert image.metadata.orientation == image.metadata.jpeg.orientation == orientation
    rows, columns = slice(21, 101), slice(13, 99)
    window = unit(image.pixels[rows, columns])
    coding = image.metadata.jpeg.window(rows, columns, image.height, image.width)
    assert None not in checked(window, coding).steps
    again = JpegCoding.from_dict(coding.to_dict())
    assert again == coding
    row, column = coding.origin
    assert checked(window, JpegCoding(coding.steps, coding.sampling, orientation, (row + 1, column))) is None
    assert checked(window, JpegCoding(coding.steps, coding.sampling, orientation, (row, column + 1))) is None


# ---- JPEG: the steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subsampling", SUBSAMPLING)
@pytest.mark.parametrize("quality", [10, 50, 90])
@pytest.mark.parametrize("size", [(112, 144), (121, 147)], ids=str)
def test_the_truth_lies_within_the_whole_steps_and_the_decoded_image_in_all(monkeypatch, quality, subsampling, size):
    clean = photograph(*size)
    decoded = unit(np.asarray(Pillow.open(encoded(clean, quality=quality, subsampling=subsampling))))
    agreement = Quantisation(decoded, found_in(decoded))
    change = agreement.apply(decoded) - decoded
    if subsampling != "4:4:4":  # decoders smooth colours, whose mean over a sample's pixels is not the sample then
        change = change @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(change, 0, rtol=0, atol=2e-5 if subsampling == "4:4:4" else 2e-3)  # black and white cut some off
    # Decoders and encoders round; a step is some levels.
    monkeypatch.setattr(quantisation, "_NARROW", 1.0)
    assert distance(agreement.apply(unit(clean)), unit(clean)) < 0.25 * distance(decoded, unit(clean))
    painted = damaged(unit(clean), quality)
    assert distance(agreement.apply(painted), unit(clean)) < distance(painted, unit(clean))


def test_every_coefficient_is_brought_within_its_bounds_and_no_further():
    from scipy.fft import dctn

    clean = photograph(96, 128, channels=1)
    decoded = unit(np.asarray(Pillow.open(encoded(clean, quality=30)))[:, :, None])
    coding = found_in(decoded)
    painted = np.clip(damaged(unit(clean), 0), 0.1, 0.9)
    delivered = Quantisation(decoded, coding).apply(painted)

    def coefficients(image):
        blocks = (255.0 * image[:, :, 0]).reshape(12, 8, 16, 8).transpose(0, 2, 1, 3)
        return dctn(blocks, axes=(2, 3), norm="ortho")

    inside = (delivered[:, :, 0] > 0) & (delivered[:, :, 0] < 1)  # a block that black or white cut off need not keep them
    whole = inside.reshape(12, 8, 16, 8).all(axis=(1, 3))
    assert whole.mean() > 0.9
    bound = 0.25 * np.array(coding.steps[0])  # half of a half
    before, after = (coefficients(image) - coefficients(decoded) for image in (painted, delivered))
    np.testing.assert_allclose(after[whole], np.clip(before, -bound, bound)[whole], rtol=0, atol=2e-3)


def test_bounds_are_looser_where_a_block_reaches_beyond_the_image():
    steps = ((40,) * 8,) * 8
    whole, part = (JpegCoding((steps,), ((1, 1),), origin=origin) for origin in ((0, 0), (4, 8)))
    decoded, painted = np.full((20, 16, 1), 0.5, np.float32), np.full((20, 16, 1), 0.6, np.float32)
    # A plain block away by one level has a coefficient of 8; a quarter of a step is 10, at the edge half of one, 20.
    for coding, loose in ((whole, slice(16, 20)), (part, slice(0, 4))):
        away = 255 * (Quantisation(decoded, coding).apply(painted) - decoded)[:, 0, 0]
        expected = np.full(20, 10 / 8)
        expected[loose] = 20 / 8
        np.testing.assert_allclose(away, expected, rtol=0, atol=1e-3)


def test_components_without_steps_and_unknown_pixels_stay_as_painted():
    clean = photograph(64, 64)
    decoded = unit(np.asarray(Pillow.open(encoded(clean, quality=50, subsampling="4:4:4"))))
    coding, painted = found_in(decoded), np.clip(damaged(unit(clean), 3), 0.3, 0.7)
    colour = Quantisation(decoded, JpegCoding((None, *coding.steps[1:]), coding.sampling)).apply(painted) - painted
    inner = slice(8, -8)
    assert np.abs(colour).max() > 0.01
    np.testing.assert_allclose((colour @ [0.299, 0.587, 0.114])[inner, inner], 0, rtol=0, atol=1e-3)
    known = np.zeros((64, 64), bool)
    known[:32] = True
    some = Quantisation(decoded, coding, known).apply(painted)
    np.testing.assert_allclose(some[32:], painted[32:], rtol=0, atol=1e-6)
    assert np.abs(some[:32] - painted[:32]).max() > 0.01


# ---- the tasks -------------------------------------------------------------------------------------------------------

SMALL = {"channels": 8, "levels": 3, "skips": 4, "threads": 1, "seed": 1}


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_super_resolution_delivers_what_agrees_unless_it_is_told_not_to(kernels):
    truth = photograph(48, 64)
    small = np.clip(np.rint(255 * apply(Downsampling(2, "lanczos2"), unit(truth))), 0, 255).astype(np.uint8)
    common = {**SMALL, "iterations": 60, "truth": truth, "kernels": kernels}
    kept, painted = (dipengine.super_resolve(small, 2, known=known, **common) for known in (None, "fit"))
    assert kept.record["parameters"]["known"] == "keep" and painted.record["parameters"]["known"] == "fit"
    away = [distance(apply(Downsampling(2, "lanczos2"), unit(found.image)), unit(small)) for found in (kept, painted)]
    assert away[0] < 0.5 < 2 < away[1]  # rounding; what 60 iterations leave
    assert kept.record["psnr"] > painted.record["psnr"] + 1
    # What is measured on the way is what would be delivered.
    assert kept.history.psnr[-1][1] == pytest.approx(kept.record["psnr"], abs=0.1)
    assert dipengine.super_resolve(small, 2, preset="paper", **{**common, "iterations": 1}).record["parameters"]["known"] == "fit"


def test_a_jpeg_is_delivered_within_its_steps_and_in_fewer_iterations():
    clean = photograph(96, 112)
    decoded = np.asarray(Pillow.open(encoded(clean, quality=15)))
    common = {"threads": 1, "truth": clean}
    kept = dipengine.dejpeg(decoded, **common)
    assert kept.record["iterations"] == 239  # 3 times the side of a square of its canvas's area, times 0.72
    assert kept.record["stop_reason"] == "iterations"
    assert kept.record["parameters"]["jpeg"]["steps"][0][0][:3] == [53, 37, 33]
    assert kept.record["psnr"] > kept.record["psnr_input"] + 0.3
    painted = dipengine.dejpeg(decoded, known="fit", iterations=239, stop="fixed", **common)
    assert "jpeg" not in painted.record["parameters"]
    assert kept.record["psnr"] > painted.record["psnr"] + 0.1


def test_an_image_without_steps_is_fitted_as_before():
    plan = plan_restoration(from_array(photograph(40, 40))[0], "dejpeg", {}, Settings())
    assert plan.problem.agreement is None and plan.recipe.stop is None
    sixteen = plan_restoration(from_array(photograph(40, 40).astype(np.uint16) * 257)[0], "dejpeg", {}, Settings())
    assert sixteen.problem.agreement is None


@pytest.mark.parametrize("task, options", [("dejpeg", {}), ("superres", {"factor": 2})])
def test_known_is_keep_or_fit(task, options):
    with pytest.raises(dipengine.InputError, match="keep or fit"):
        plan_restoration(from_array(photograph(32, 32))[0], task, {**options, "known": "some"}, Settings())
