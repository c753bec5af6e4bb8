"""The Python interface: what comes back is of the input's kind, repeats bit for bit, and never sees the truth."""

import json

import numpy as np
import pytest
import torch

import dipengine
from conftest import TINY


def test_denoise_returns_an_image_of_the_same_kind(noisy):
    result = dipengine.denoise(noisy, **TINY)
    assert isinstance(result.image, np.ndarray)
    assert result.image.shape == noisy.shape and result.image.dtype == np.uint8
    assert len(result.history.loss) == TINY["iterations"]
    assert result.record["iterations"] == TINY["iterations"]
    json.dumps(result.record, allow_nan=False)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64, np.int16])
def test_other_dtypes_come_back_as_they_were(noisy, dtype):
    image = noisy.astype(dtype) * (200 if dtype == np.uint16 else 1)
    result = dipengine.denoise(image, **TINY)
    assert result.image.dtype == dtype
    assert image.min() <= result.image.astype(float).mean() <= image.max()


def test_a_cameras_counts_are_restored_alike_whatever_integer_holds_them(noisy):
    """12 bits in 16: on the scale of 0..65535 they would be one dark grey, and the fit worse than its input."""
    counts = noisy.astype(np.uint16) * 16
    result, wide = (dipengine.denoise(array, truth=array, **TINY) for array in (counts, counts.astype(np.int32)))
    np.testing.assert_array_equal(result.image, wide.image)
    assert result.record["psnr_peak"] == wide.record["psnr_peak"] == np.ptp(counts)


def test_torch_tensors_channels_first_come_back_as_tensors(noisy):
    tensor = torch.from_numpy(noisy).permute(2, 0, 1).float()
    result = dipengine.denoise(tensor, axes="CHW", **TINY)
    assert isinstance(result.image, torch.Tensor)
    assert result.image.shape == tensor.shape and result.image.dtype == torch.float32
    same = dipengine.denoise(noisy.astype(np.float32), **TINY)
    np.testing.assert_array_equal(result.image.permute(1, 2, 0).numpy(), same.image)


def test_grey_images_keep_two_axes(noisy):
    assert dipengine.denoise(noisy[:, :, 0], **TINY).image.shape == noisy.shape[:2]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (3, 33)])
def test_any_size_can_be_restored(shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    assert dipengine.denoise(image, **TINY).image.shape == image.shape


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_same_seed_same_bits_and_another_seed_others(noisy, kernels):
    first, second, other = (dipengine.denoise(noisy, seed=s, kernels=kernels, **TINY) for s in (3, 3, 4))
    np.testing.assert_array_equal(first.image, second.image)
    for name, value in first.generator.parameters.items():
        np.testing.assert_array_equal(value, second.generator.parameters[name])
    assert (first.image != other.image).any()


def test_the_truth_never_influences_the_output(noisy, picture):
    settings = {**TINY, "stop": "auto", "iterations": 40}
    blind = dipengine.denoise(noisy, **settings)
    seeing = dipengine.denoise(noisy, truth=picture, **settings)
    np.testing.assert_array_equal(blind.image, seeing.image)
    assert blind.record["psnr"] is None and seeing.record["psnr"] is not None


def test_a_fit_approaches_its_target(picture):
    settings = {**TINY, "iterations": 150, "channels": 16}
    result = dipengine.denoise(picture, truth=picture, preset="fast", **settings)
    assert result.history.loss[-1] < result.history.loss[0] / 10
    assert result.record["psnr"] > 20


def test_reported_psnr_is_that_of_the_delivered_image(noisy, picture):
    result = dipengine.denoise(noisy, truth=picture, **TINY)
    error = np.mean((result.image.astype(float) - picture.astype(float)) ** 2)
    assert result.record["psnr"] == pytest.approx(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("factor", [2, 3])
def test_super_resolution_enlarges(noisy, factor):
    result = dipengine.super_resolve(noisy[:9, :13], factor, **TINY)
    assert result.image.shape == (9 * factor, 13 * factor, 3)


def test_inpainting_keeps_known_pixels_and_changes_missing_ones(picture):
    mask = np.ones(picture.shape[:2], np.uint8)
    mask[10:20, 10:30] = 0
    damaged = np.where(mask[:, :, None] > 0, picture, 0).astype(np.uint8)
    result = dipengine.inpaint(damaged, mask, **TINY)
    np.testing.assert_array_equal(result.image[mask > 0], damaged[mask > 0])
    assert (result.image[mask == 0] != 0).any()
    fitted = dipengine.inpaint(damaged, mask, known="fit", **TINY)
    assert (fitted.image[mask > 0] != damaged[mask > 0]).any()


def test_alpha_of_an_array_is_kept_enlarged_or_taken_for_the_mask(picture):
    alpha = np.full((*picture.shape[:2], 1), 255, np.uint8)
    alpha[5:15, 5:15] = 0
    image = np.concatenate([picture, alpha], axis=2)
    denoised = dipengine.denoise(image, alpha=True, **TINY).image
    np.testing.assert_array_equal(denoised[:, :, 3:], alpha)
    np.testing.assert_array_equal(denoised[:, :, :3], dipengine.denoise(picture, **TINY).image)
    assert dipengine.super_resolve(image, 2, alpha=True, **TINY).image.shape == (80, 104, 4)
    whole = dipengine.inpaint(image, alpha=True, **TINY).image
    masked = dipengine.inpaint(picture, alpha[:, :, 0], **TINY).image
    np.testing.assert_array_equal(whole[:, :, :3], masked)
    assert (whole[:, :, 3] == 255).all()


def test_missing_pixels_never_reach_the_fit(picture):
    mask = np.ones(picture.shape[:2], bool)
    mask[5:15, 5:15] = False
    garbage = [np.where(mask[:, :, None], picture, value).astype(np.uint8) for value in (0, 255)]
    first, second = (dipengine.inpaint(image, mask, known="fit", **TINY) for image in garbage)
    np.testing.assert_array_equal(first.image, second.image)


def test_float_range_is_that_of_the_known_pixels(picture):
    image = picture.astype(np.float32)
    image[0, 0] = 1e6  # under the mask
    mask = np.ones(image.shape[:2], bool)
    mask[0, 0] = False
    result = dipengine.inpaint(image, mask, **TINY)
    assert result.record["value_map"]["high"] == image[mask].max()


def test_dejpeg_runs_its_slim_network(noisy):
    result = dipengine.dejpeg(noisy, iterations=3, stop="fixed", threads=1)
    assert result.record["parameters"]["generator"]["channels_down"] == [8, 16, 32, 64, 128]


def test_progress_can_stop_a_fit(noisy):
    seen = []
    result = dipengine.denoise(noisy, progress=lambda report: seen.append(report) or report.iteration == 5, **TINY)
    assert [report.iteration for report in seen] == [1, 2, 3, 4, 5]
    assert result.record["stop_reason"] == "callback" and result.record["iterations"] == 5


def test_generator_file_round_trip(noisy, tmp_path):
    result = dipengine.denoise(noisy, **TINY)
    path = tmp_path / "g.safetensors"
    result.generator.save(path)
    loaded = dipengine.FittedGenerator.load(path)
    assert loaded.architecture == result.generator.architecture
    assert loaded.values == result.generator.values and loaded.crop == result.generator.crop
    for name, value in result.generator.parameters.items():
        np.testing.assert_array_equal(value, loaded.parameters[name])
    np.testing.assert_array_equal(loaded.delivered, result.generator.delivered)
    np.testing.assert_array_equal(loaded.code.make(loaded.canvas), result.generator.code.make(result.generator.canvas))


def test_a_saved_generator_paints_the_picture_of_its_fit(noisy, tmp_path):
    """Weights and z of the file, in a network made anew, give the output that a fit without averaging delivered."""
    from dipengine.generators.hourglass import HourglassNetwork

    result = dipengine.inpaint(noisy, np.ones(noisy.shape[:2]), preset="paper", precision="fp32", **TINY)
    result.generator.save(tmp_path / "g.safetensors")
    loaded = dipengine.FittedGenerator.load(tmp_path / "g.safetensors")
    network = HourglassNetwork(loaded.architecture)
    network.load_numpy(loaded.parameters)
    z = torch.from_numpy(loaded.code.make(loaded.canvas)).permute(2, 0, 1)[None]
    with torch.no_grad():
        painted = torch.sigmoid(network(z))[0].permute(1, 2, 0).numpy()
    height, width = loaded.crop
    np.testing.assert_allclose(painted[:height, :width], loaded.delivered, atol=1e-5)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_foreign_generator_files_are_refused(tmp_path, content):
    path = tmp_path / "g.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(dipengine.InputError):
        dipengine.FittedGenerator.load(path)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda a: dipengine.denoise(a, sigma=-1), "sigma"),
        (lambda a: dipengine.denoise(a, device="cuda:7"), "cuda:7"),
        (lambda a: dipengine.denoise(a, device="quantum"), "quantum"),
        (lambda a: dipengine.denoise(a, preset="slow"), "preset"),
        (lambda a: dipengine.denoise(a, iterations=5.5), "whole number"),
        (lambda a: dipengine.denoise(a, seed=1.5), "whole number"),
        (lambda a: dipengine.denoise(a, iterations=0), "iterations"),
        (lambda a: dipengine.denoise(a, seed=-1), "seed"),
        (lambda a: dipengine.denoise(a, levels=0), "levels"),
        (lambda a: dipengine.denoise(a, channels=0), "channels"),
        (lambda a: dipengine.denoise(a, upsample="cubic"), "upsample"),
        (lambda a: dipengine.super_resolve(a, 0), "factor"),
        (lambda a: dipengine.inpaint(a, np.zeros(a.shape[:2])), "no pixel known"),
        (lambda a: dipengine.inpaint(a, np.ones((3, 3))), "one size"),
        (lambda a: dipengine.restore(a, "denoise", sgima=3), "no option"),
        (lambda a: dipengine.restore(a, "superres"), "needs factor"),
        (lambda a: dipengine.restore(a, "colourise"), "no task"),
        (lambda a: dipengine.denoise(a.astype(float) * np.nan), "NaN"),
        (lambda a: dipengine.denoise(np.full(a.shape, np.inf)), "infinite"),
        (lambda a: dipengine.denoise(a, truth=a[:5]), "truth"),
        (lambda a: dipengine.denoise(a, truth=a / 255), "float64 with values up to 1 .*one unit"),
        (lambda a: dipengine.denoise(np.float32(a / 255), truth=np.uint16(a)), "uint16 with values up to 255 .*one unit"),
        (lambda a: dipengine.inpaint(a, random_missing=0.5, invert_mask=True), "there is none"),
        (lambda a: dipengine.denoise(a, value_range=1), "two numbers"),
        (lambda a: dipengine.denoise(a, value_range="0,1"), "two numbers"),
        (lambda a: dipengine.denoise(a, value_range=(0, None)), "two numbers"),
        (lambda a: dipengine.denoise(a, init_from=3), "init_from is a int"),
        (lambda a: dipengine.denoise(a, channels=0.5), "channels"),
        (lambda a: dipengine.denoise("noisy.png"), "read the file"),
        (lambda a: dipengine.denoise([a, a]), "Engine"),
        (lambda a: dipengine.denoise(np.stack([a, a])), "Engine"),
        (lambda a: dipengine.denoise(type("Picture", (), {"__array_interface__": a.__array_interface__})()), "numpy.asarray"),
    ],
)
def test_wrong_use_is_one_sentence(noisy, call, message):
    with pytest.raises(dipengine.DipEngineError, match=message) as caught:
        call(noisy)
    assert "\n" not in str(caught.value)


def test_counts_as_small_as_their_truth_are_measured():
    light = np.linspace(0.1, 1.8, 1600).reshape(40, 40)
    counts = np.random.default_rng(0).poisson(light).astype(np.uint16)
    assert dipengine.denoise(counts, truth=light, noise="poisson", gain=1.0, **TINY).record["psnr"] > 0


def test_numbers_and_devices_of_other_libraries(noisy):
    kinds = {"channels": np.int64(8), "levels": np.int64(2), "iterations": np.int32(3), "value_range": np.array([0, 300])}
    result = dipengine.denoise(noisy, device=torch.device("cpu"), stop="fixed", **kinds)
    plain = dipengine.denoise(noisy, device="cpu", stop="fixed", channels=8, levels=2, iterations=3, value_range=(0, 300))
    np.testing.assert_array_equal(result.image, plain.image)
    json.dumps(result.record)


def test_a_result_is_shown_in_a_line(noisy):
    """Not with all weights and pixels: notebooks show what a cell ends with."""
    result = dipengine.denoise(noisy, truth=noisy, **TINY)
    shown = repr(result)
    assert "40x52x3 uint8" in shown and f"{result.record['psnr']:.2f} dB" in shown and len(shown) < 200 and "\n" not in shown
    assert len(repr(result.generator)) < 1000
    assert repr(dipengine.denoise(torch.from_numpy(noisy), **TINY)).startswith("<dipengine.Result of denoise: 40x52x3 uint8")


def test_a_result_is_begun_from_as_its_generator_is(noisy):
    first = dipengine.denoise(noisy, **TINY)
    again, same = (dipengine.denoise(noisy, init_from=source, **TINY) for source in (first, first.generator))
    np.testing.assert_array_equal(again.image, same.image)
    assert (again.image != first.image).any()


def test_importing_needs_neither_torch_nor_an_image_reader():
    import subprocess
    import sys

    code = (
        "import sys, dipengine, dipengine.cli.main as m; m.build_parser();"
        "print([n for n in ('torch', 'pyvips', 'astropy', 'skimage') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
