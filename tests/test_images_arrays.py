"""Arrays of the Python API come back in the caller's library, dtype, device and axes."""

import hashlib

import numpy as np
import pytest
from image_samples import noise

from dipengine.errors import InputError
from dipengine.images import from_array


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "float16", "float32",
                                   "float64", ">f4", ">i2"])
@pytest.mark.parametrize("axes", [None, "HW", "HWC", "CHW"])
def test_numpy_arrays_come_back_as_they_were(dtype, axes):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 100, (11, 13, 3)).astype(dtype)
    given = {"HW": values[..., 0], "CHW": np.moveaxis(values, -1, 0)}.get(axes, values)
    image, restore = from_array(given, axes)
    expected = values[..., :1] if axes == "HW" else values
    np.testing.assert_array_equal(image.pixels, expected)
    assert image.dtype.isnative and image.dtype.name == ("float32" if dtype == "float16" else np.dtype(dtype).name)
    assert image.format == "array" and image.alpha is None and image.known is None
    back = restore(image.pixels)
    assert back.dtype == given.dtype and back.shape == given.shape
    np.testing.assert_array_equal(back, given)


def test_a_larger_result_keeps_the_axes():
    image, restore = from_array(noise("uint8", 3), None)
    assert restore(np.zeros((46, 74, 3), np.uint8)).shape == (46, 74, 3)
    image, restore = from_array(np.moveaxis(noise("uint8", 3), -1, 0), "CHW")
    assert restore(np.zeros((46, 74, 3), np.uint8)).shape == (3, 46, 74)
    image, restore = from_array(noise("uint8", 1)[..., 0])
    assert restore(np.zeros((46, 74, 1), np.uint8)).shape == (46, 74)


def test_all_channels_are_colour_unless_alpha_is_asked_for():
    sample = noise("uint8", 4)
    assert from_array(sample)[0].channels == 4
    image, restore = from_array(sample, alpha=True)
    np.testing.assert_array_equal(image.pixels, sample[..., :3])
    np.testing.assert_array_equal(image.alpha, sample[..., 3])
    np.testing.assert_array_equal(restore(sample), sample)


def test_the_digest_is_that_of_the_values_in_row_order():
    sample = noise("float32", 3)
    image, _ = from_array(np.asfortranarray(sample))
    assert image.sha256 == hashlib.sha256(sample.tobytes()).hexdigest()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int64", "float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("axes", ["HW", "HWC", "CHW"])
def test_torch_tensors_come_back_as_they_were(dtype, axes):
    torch = pytest.importorskip("torch")
    values = torch.arange(11 * 13 * 3).reshape(11, 13, 3).remainder(100).to(getattr(torch, dtype))
    given = {"HW": values[..., 0], "CHW": values.permute(2, 0, 1)}.get(axes, values)
    if given.is_floating_point():
        given = given.clone().requires_grad_()
    image, restore = from_array(given, axes)
    assert isinstance(image.pixels, np.ndarray) and image.pixels.shape[:2] == (11, 13)
    back = restore(image.pixels)
    assert isinstance(back, torch.Tensor) and back.dtype == given.dtype and back.device == given.device
    assert not back.requires_grad and torch.equal(back, given.detach())


class _Foreign:
    """An array of a library of its own, with DLPack and the array API's namespace and nothing else."""

    def __init__(self, values):
        self.values, self.device = values, "planet"

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()

    def __array_namespace__(self):
        return self

    @staticmethod
    def asarray(values, device):
        assert device == "planet"
        return _Foreign(values)


def test_any_array_with_dlpack_comes_back_in_its_library():
    sample = noise("float32", 3)
    image, restore = from_array(_Foreign(sample))
    np.testing.assert_array_equal(image.pixels, sample)
    back = restore(image.pixels * 2)
    assert isinstance(back, _Foreign)
    np.testing.assert_array_equal(back.values, sample * 2)


@pytest.mark.parametrize(
    ("array", "axes", "words"),
    [
        (np.zeros((1, 8, 9, 3)), None, r"batch\[0\]"),
        (np.zeros(5), None, "1 axes"),
        (np.zeros((3, 64, 64)), None, "axes='CHW'"),
        (np.zeros((8, 9)), "CHW", "does not fit"),
        (np.zeros((8, 9)), "WH", "'WH'"),
        (np.zeros((0, 9, 3)), None, "no pixels"),
        (np.full((8, 9), np.nan), None, "no known pixel .*NaN"),
        (np.dstack([np.ones((8, 9)), np.full((8, 9), np.inf)]), None, "infinite"),
        (np.full((8, 9), np.inf, np.float16), None, "infinite"),
        (np.zeros((8, 9), complex), None, "complex"),
        (np.zeros((8, 9), bool), None, "bool"),
        (np.array([["a"]]), None, "dtype"),
        (np.ma.masked_equal(np.zeros((8, 9)), 0), None, "no known pixel .*masked"),
        ([[1, 2], [3, 4]], None, "list"),
        (None, None, "NoneType"),
    ],
)
def test_unusable_arrays_are_refused_with_one_sentence(array, axes, words):
    with pytest.raises(InputError, match=words) as error:
        from_array(array, axes)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_channels_first_can_be_insisted_upon_and_denied():
    array = np.zeros((3, 64, 64), np.float32)
    assert from_array(array, "CHW")[0].pixels.shape == (64, 64, 3)
    assert from_array(array, "HWC")[0].pixels.shape == (3, 64, 64)
