"""Deblurring: the operator against SciPy's convolution, the kernel's files, the frame that comes back."""

import numpy as np
import pytest
import torch
from scipy import ndimage, signal

import dipengine
from conftest import TINY, synthetic_picture
from dipengine.errors import ImageError, InputError
from dipengine.images import Image, ValueMap, checked_kernel, read_kernel, write_image
from dipengine.tasks import TaskData, task_named
from dipengine.tasks.blur import Blur

SHAPES = [(1, 1), (3, 3), (5, 2), (4, 6), (1, 7), (16, 11)]


def random_kernel(shape) -> np.ndarray:
    kernel = np.random.default_rng(3).random(shape)
    return kernel / kernel.sum()


def problem(picture, kernel, **options):
    data = TaskData(picture.astype(np.float32), None, None, ValueMap(0.0, 1.0))
    return task_named("deblur").problem(data, "balanced", kernel=kernel, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_operator_is_the_valid_convolution(shape):
    kernel = random_kernel(shape)
    image = np.random.default_rng(0).random((3, 29, 23))
    got = Blur(kernel).apply(torch.from_numpy(image)[None])[0].numpy()
    expected = np.stack([signal.convolve(plane, kernel, mode="valid", method="direct") for plane in image])
    np.testing.assert_allclose(got, expected, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_the_adjoint(shape):
    """<A x, y> = <x, A^T y>, A^T y by SciPy: the full convolution with the kernel turned around."""
    kernel = random_kernel(shape)
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.random((1, 2, 24, 27))).requires_grad_()
    blurred = Blur(kernel).apply(x)
    y = rng.random(blurred.shape)
    blurred.backward(torch.from_numpy(y))
    expected = np.stack([signal.convolve(plane, kernel[::-1, ::-1], mode="full", method="direct") for plane in y[0]])
    np.testing.assert_allclose(x.grad[0].numpy(), expected, atol=1e-12)
    assert (blurred.detach().numpy() * y).sum() == pytest.approx((x.detach().numpy() * expected[None]).sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_painted_image_explains_the_frame_and_the_frame_lies_under_the_kernels_middle(shape):
    """A scene larger than the frame, blurred as SciPy does it ("same"), cropped: A(scene) is the frame."""
    kernel = random_kernel(shape)
    scene = np.random.default_rng(2).random((40, 36))
    same = signal.convolve(scene, kernel, mode="same", method="direct")
    stated = problem(np.zeros((20, 18, 1)), kernel)
    (top, left), (height, width) = stated.origin, stated.output_shape
    part = scene[10 - top : 10 - top + height, 9 - left : 9 - left + width]
    blurred = stated.operator.apply(torch.from_numpy(part)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(blurred, same[10:30, 9:27], atol=1e-13)
    np.testing.assert_array_equal(stated.delivered(part[:, :, None])[:, :, 0], scene[10:30, 9:27])


def test_zeros_around_a_kernel_go_in_pairs_and_its_middle_stays():
    kernel = np.zeros((9, 8))
    kernel[2:5, 3:7] = np.arange(1, 13).reshape(3, 4)
    trimmed = checked_kernel(kernel)
    assert trimmed.shape == (5, 6) and trimmed.sum() == pytest.approx(1)
    image = np.random.default_rng(0).random((20, 21))
    whole = ndimage.convolve(image, kernel / kernel.sum(), mode="wrap", origin=(0, -1))
    # ndimage centres even sizes one further; both here are even or odd alike, so one origin serves both.
    np.testing.assert_allclose(ndimage.convolve(image, trimmed, mode="wrap", origin=(0, -1)), whole)


@pytest.mark.parametrize("shape", [(5, 5), (4, 3), (1, 6)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_output_has_the_inputs_size_and_kind(shape, dtype):
    picture = (synthetic_picture(21, 30) * 255).astype(dtype)
    truth = picture.copy()
    result = dipengine.deblur(picture, random_kernel(shape), truth=truth, **TINY)
    assert result.image.shape == picture.shape and result.image.dtype == dtype
    assert result.record["parameters"]["kernel"]["height"] == shape[0]
    assert result.generator.origin == (shape[0] // 2, shape[1] // 2)


def test_a_fit_undoes_a_shift_exactly_in_place():
    """A kernel of one weight off its middle moves the picture; the restored one is moved back."""
    x = np.arange(48)
    scene = np.broadcast_to(0.5 + 0.3 * np.sign(np.sin(2 * np.pi * x / 16)), (32, 48))[:, :, None]
    kernel = np.zeros((5, 5))
    kernel[2, 4] = 1.0
    moved = signal.convolve(scene[:, :, 0], kernel, mode="same")[:, 4:44, None]
    truth = scene[:, 4:44]
    result = dipengine.deblur(
        moved.astype(np.float32), kernel, channels=16, levels=2, iterations=150, stop="fixed", threads=1, precision="fp32"
    )
    errors = {s: np.mean((np.roll(result.image, s, axis=1) - truth)[:, 6:-6] ** 2) for s in (-2, -1, 0, 1, 2)}
    assert min(errors, key=errors.get) == 0


def test_the_generator_file_knows_where_the_frame_lies(tmp_path):
    from dipengine.generators.hourglass import HourglassNetwork

    picture = synthetic_picture(20, 24).astype(np.float32)
    result = dipengine.deblur(picture, random_kernel((5, 7)), preset="paper", precision="fp32", **TINY)
    result.generator.save(tmp_path / "g.safetensors")
    loaded = dipengine.FittedGenerator.load(tmp_path / "g.safetensors")
    network = HourglassNetwork(loaded.architecture)
    network.load_numpy(loaded.parameters)
    with torch.no_grad():
        painted = torch.sigmoid(network(torch.from_numpy(loaded.code.make(loaded.canvas)).permute(2, 0, 1)[None]))
    (top, left), (height, width) = loaded.origin, loaded.crop
    window = painted[0, :, top : top + height, left : left + width].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(window, loaded.delivered, atol=1e-5)


def test_known_noise_reaches_the_data_term():
    picture = synthetic_picture(20, 24)
    assert problem(picture, random_kernel((3, 3)), sigma=0.1).sigma == pytest.approx(0.1)
    term = problem(picture, random_kernel((3, 3)), noise="poisson", gain=50.0).data_term
    assert term.to_dict() == {"data_term": "likelihood", "gain": 50.0, "offset": 0.0, "read_noise": 0.0}


@pytest.mark.parametrize("ending", ["npy", "txt", "csv", "png", "tif"])
def test_a_kernel_is_the_same_from_every_kind_of_file(tmp_path, ending):
    weights = np.array([[1, 2, 3], [4, 50, 6]], np.uint8)
    path = tmp_path / f"kernel.{ending}"
    if ending == "npy":
        np.save(path, weights)
    elif ending in ("txt", "csv"):
        np.savetxt(path, weights, delimiter="," if ending == "csv" else " ", header="a comment")
    else:
        write_image(path, weights[:, :, None], Image(weights[:, :, None]))
    np.testing.assert_allclose(read_kernel(path), weights / weights.sum())


@pytest.mark.parametrize(
    "text",
    ["1 2 1\n3 4 5\n", "1,2,1\n3, 4, 5\n", "1;2;1;\n3;4;5;\n", "# mine\n1 2 1 # first\n\n3 4 5\n", "\ufeff1,2,1\r\n3,4,5\r\n"],
)
def test_a_matrix_as_text_is_read_however_it_is_written(tmp_path, text):
    (tmp_path / "kernel.txt").write_text(text, encoding="utf-8", newline="")
    np.testing.assert_allclose(read_kernel(tmp_path / "kernel.txt"), np.array([[1, 2, 1], [3, 4, 5]]) / 16)


@pytest.mark.parametrize("text", ["1,0 2,5\n3,5 4,5\n", "1,5;2,5\n"])
def test_decimal_commas_are_refused_and_not_taken_for_more_numbers(tmp_path, text):
    (tmp_path / "kernel.csv").write_text(text)
    with pytest.raises(ImageError, match="not a matrix of numbers"):
        read_kernel(tmp_path / "kernel.csv")


def test_a_kernel_drawn_in_transparency_is_refused(tmp_path):
    white = np.full((3, 3, 1), 255, np.uint8)
    for alpha, usable in ((np.eye(3, dtype=np.uint8) * 255, False), (white[:, :, 0], True)):
        write_image(tmp_path / "k.png", white, Image(white, alpha=alpha), alpha=alpha)
        if usable:
            np.testing.assert_allclose(read_kernel(tmp_path / "k.png"), 1 / 9)
        else:
            with pytest.raises(InputError, match="transparent"):
                read_kernel(tmp_path / "k.png")


def test_a_kernel_of_another_kind_is_told_what_kinds_there_are(tmp_path):
    (tmp_path / "kernel.mat").write_text("1 2 1")
    with pytest.raises(ImageError, match=r"kernel is no readable image .*\.npy array, or a matrix as \.txt"):
        read_kernel(tmp_path / "kernel.mat")


@pytest.mark.parametrize("weight", [1e308, 1e-320])
def test_weights_of_any_size_are_scaled_to_sum_1(weight):
    np.testing.assert_allclose(checked_kernel(np.full((3, 3), weight)), 1 / 9)


@pytest.mark.parametrize(
    "kernel, message",
    [
        (np.zeros((3, 3)), "sum 0"),
        (np.array([[1.0, -2.0]]), "sum -1"),
        (np.array([[1.0, np.nan]]), "NaN"),
        (np.ones(5), "shape"),
        (np.ones((2, 2, 2)), "shape"),
        ([["a", "b"]], "matrix of numbers"),
        ([[1, 2], [3]], "matrix"),
        (np.ones((0, 3)), "shape"),
        (np.ones((30, 3)), "no larger than the image"),
    ],
)
def test_unusable_kernels_are_one_sentence(kernel, message):
    with pytest.raises(InputError, match=message) as caught:
        dipengine.deblur(synthetic_picture(12, 12), kernel, **TINY)
    assert "\n" not in str(caught.value)


def test_sharp_floats_may_leave_the_range_of_their_blur():
    """A blurred point of light is fainter than the point: the range must hold both."""
    scene = np.full((24, 24), 10.0)
    scene[12, 12] = 40.0
    kernel = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]])
    blurred = signal.convolve(scene, kernel / kernel.sum(), mode="same")[2:-2, 2:-2]
    result = dipengine.deblur(blurred, kernel, **TINY)
    values = result.record["value_map"]
    assert values["high"] == pytest.approx(blurred.max() + np.ptp(blurred) / 2)
    given = dipengine.deblur(blurred, kernel, value_range=(0, 50), **TINY).record["value_map"]
    assert given == {"low": 0, "high": 50}


@pytest.mark.parametrize("dtype, peak", [(np.uint8, 255), (np.uint16, None), (np.float32, None)])
def test_psnr_is_measured_against_the_truths_range_and_not_the_headroom(dtype, peak):
    truth = np.rint(200 * synthetic_picture(21, 30)).astype(dtype)
    result = dipengine.deblur(truth, random_kernel((3, 3)), truth=truth, **TINY)
    error = np.mean((result.image.astype(np.float64) - truth) ** 2)
    peak = peak or np.ptp(truth)
    assert result.record["psnr_peak"] == peak
    assert result.record["psnr"] == pytest.approx(10 * np.log10(peak**2 / error))
