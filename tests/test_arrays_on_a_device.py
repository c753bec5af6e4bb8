"""Arrays on a GPU go through a restoration without a trip to the host, and come back as they came.

Without a GPU, others stand for them (`device_arrays.py`). With one, the same on torch and CuPy.
"""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import dipengine  # noqa: E402
from conftest import TINY  # noqa: E402
from device_arrays import COMPARED, HEIGHT, KINDS, WIDTH, given_back, given_to, kind_of, mask_of, noisy, stand_in  # noqa: E402, F401
from dipengine import restoration  # noqa: E402
from dipengine.errors import InputError  # noqa: E402
from dipengine.export.generator_file import FittedGenerator  # noqa: E402
from dipengine.fitting import native_fit  # noqa: E402
from dipengine.fitting.device import Placement  # noqa: E402
from dipengine.images import namespaces  # noqa: E402
from dipengine.kernels import backend  # noqa: E402

SUPPORTS = native_fit.supports
SETTINGS = {**TINY, "iterations": 4}
KERNEL = np.array([[1.0, 2.0, 1.0]]) / 4
SENSOR = {"noise": "poisson-gaussian", "gain": 2.0, "offset": 10.0, "read_noise": 1.5}


def holed(seed):
    """Noise in which three pixels are missing."""
    pixels = noisy("float32", seed=seed)
    pixels[seed, 3:5] = np.nan
    pixels[5, 5, 1] = np.nan
    return pixels


CALLS = {
    "denoise": (lambda image, put, **s: dipengine.denoise(image, sigma=25.0, truth=put(noisy(seed=9)), **s), noisy),
    "sixteen bits, grey": (lambda image, put, **s: dipengine.denoise(image, **s), lambda: noisy("uint16", 1)[:, :, 0]),
    "float64, own range": (lambda image, put, **s: dipengine.denoise(image, **s), lambda: noisy("float64") * 7 - 3),
    "int16": (lambda image, put, **s: dipengine.dejpeg(image, **s), lambda: noisy("int16")),
    "mask there": (lambda image, put, **s: dipengine.denoise(image, mask=put(mask_of()), **s), noisy),
    "inpaint, mask of the host": (lambda image, put, **s: dipengine.inpaint(image, mask_of(), invert_mask=True, **s), noisy),
    "inpaint, mask there": (lambda image, put, **s: dipengine.inpaint(image, put(mask_of().astype(np.uint8) * 255), **s),
                            lambda: noisy("uint16")),
    "inpaint at random": (lambda image, put, **s: dipengine.inpaint(image, random_missing=0.5, **s), noisy),
    "inpaint by alpha": (lambda image, put, **s: dipengine.inpaint(image, alpha=True, **s), lambda: np.concatenate(
        [noisy(), np.where(mask_of(), 255, 0).astype(np.uint8)[:, :, None]], axis=2)),
    "NaN, also in the truth": (lambda image, put, **s: dipengine.denoise(image, truth=put(holed(9)), **s), lambda: holed(0)),
    "alpha kept": (lambda image, put, **s: dipengine.denoise(image, alpha=True, **s), lambda: noisy(channels=4)),
    "likelihood": (lambda image, put, **s: dipengine.denoise(image, **SENSOR, **s), lambda: noisy("float32") * 300 + 10),
    "stabilised": (lambda image, put, **s: dipengine.denoise(image, **SENSOR, data_term="stabilised", mask=put(mask_of()), **s),
                   lambda: noisy("uint16") // 200),
    "deblur": (lambda image, put, **s: dipengine.deblur(image, put(KERNEL), sigma=10.0, **s), noisy),
    "superres": (lambda image, put, **s: dipengine.super_resolve(image, 2, **s), noisy),
    "stops by itself": (lambda image, put, **s: dipengine.denoise(image, sigma=25.0, **{**s, "stop": "auto"}), noisy),
    "kept best": (lambda image, put, **s: dipengine.denoise(image, **{**s, "stop": "auto", "iterations": 120}),
                  lambda: noisy(channels=1)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
def test_an_array_on_a_device_is_restored_there(stand_in, name, kind):
    restore, make = CALLS[name]
    expected = restore(make(), lambda array: array, **SETTINGS)
    stand_in["devices"].clear(), stand_in["trips"].clear()
    result = restore(given_to(kind, make()), lambda array: given_to(kind, array), **SETTINGS)
    assert stand_in == {"devices": ["cuda:0"], "trips": []}
    assert kind_of(result.image) == kind and str(result.image.dtype).rpartition(".")[2] == expected.image.dtype
    np.testing.assert_array_equal(given_back(result.image), expected.image)
    for key in COMPARED:
        assert result.record[key] == pytest.approx(expected.record[key], rel=1e-9) if isinstance(expected.record[key], float) \
            else result.record[key] == expected.record[key] or key == "parameters", key
    assert result.record["input"] | {"sha256": None} == expected.record["input"] | {"sha256": None}
    assert result.record["input"]["sha256"] is None and result.generator.source_sha256 is None


@pytest.mark.skipif(backend.native is None, reason="needs the native core")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["denoise", "inpaint, mask there", "alpha kept", "stabilised", "superres", "kept best"])
def test_the_native_plan_takes_an_array_of_a_device_and_gives_its_kind(stand_in, monkeypatch, name, kind):
    monkeypatch.setattr(restoration, "place", lambda settings: Placement("cpu", "fp32", "native", 1))
    monkeypatch.setattr(native_fit, "supports", SUPPORTS)
    restore, make = CALLS[name]
    expected = restore(make(), lambda array: array, **SETTINGS)
    result = restore(given_to(kind, make()), lambda array: given_to(kind, array), **SETTINGS)
    assert expected.record["path"] == result.record["path"] == "plan" and kind_of(result.image) == kind
    np.testing.assert_array_equal(given_back(result.image), expected.image)


def test_other_dtypes_and_axes_of_tensors(stand_in):
    for dtype in (torch.float16, torch.bfloat16):
        tensor = torch.from_numpy(noisy("float32")).permute(2, 0, 1).to(dtype).requires_grad_()
        result = dipengine.denoise(tensor, axes="CHW", **SETTINGS)
        assert result.image.dtype == dtype and result.image.shape == tensor.shape and not result.image.requires_grad
        host = dipengine.denoise(tensor.detach().float().permute(1, 2, 0).numpy(), **SETTINGS).image
        torch.testing.assert_close(result.image.permute(1, 2, 0).float(), torch.from_numpy(host).to(dtype).float(), rtol=0, atol=0)


def test_the_guide_of_a_flash_pair_is_part_of_the_generator_and_may_come_from_anywhere(stand_in):
    expected = dipengine.flash(noisy(), noisy(seed=4), **SETTINGS)
    for kind in KINDS:
        result = dipengine.flash(given_to(kind, noisy()), given_to(kind, noisy(seed=4)), **SETTINGS)
        np.testing.assert_array_equal(given_back(result.image), expected.image)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_on_the_cpu_brings_the_image_there_and_back(stand_in, kind):
    expected = dipengine.denoise(noisy(), **SETTINGS)
    result = dipengine.denoise(given_to(kind, noisy()), device="cpu", **SETTINGS)
    assert stand_in["devices"][-1] == "cpu" and kind_of(result.image) == kind
    np.testing.assert_array_equal(given_back(result.image), expected.image)
    assert result.record["input"]["sha256"] == expected.record["input"]["sha256"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_fit_knows_its_image_and_a_generator_can_be_saved(stand_in, kind, tmp_path):
    settings = {**SETTINGS, "stop": "auto", "iterations": 60, "checkpoint": tmp_path / "fit", "checkpoint_every": 0.0}
    expected = dipengine.denoise(noisy(), **{**settings, "checkpoint": None})

    def broken_off(report):
        if report.iteration == 30:
            raise KeyboardInterrupt

    image = np.dstack([noisy(), noisy(channels=1)])  # alpha is part of what is digested
    for given in (image, given_to(kind, image)):  # begun as one kind of array, continued as the other
        with pytest.raises(KeyboardInterrupt):
            dipengine.denoise(given, alpha=True, **settings, progress=broken_off)
        assert (tmp_path / "fit").exists()
        other = given_to(kind, image) if given is image else image
        result = dipengine.denoise(other, alpha=True, **settings)
        assert result.record["resumed_at"] > 0
        np.testing.assert_array_equal((result.image if kind_of(result.image) == "numpy" else given_back(result.image))[..., :3],
                                      expected.image)
        result.generator.save(tmp_path / "x.safetensors")
        loaded = FittedGenerator.load(tmp_path / "x.safetensors")
        np.testing.assert_array_equal(loaded.delivered, expected.generator.delivered)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call, message", [
    (lambda put: dipengine.denoise(put(np.full((4, 4), np.nan, np.float32))), "no known pixel"),
    (lambda put: dipengine.denoise(put(np.full((4, 4), np.inf, np.float32))), "infinite values"),
    (lambda put: dipengine.denoise(put(np.zeros((2, 3, 4, 4), np.float32))), "a batch"),
    (lambda put: dipengine.denoise(put(np.zeros((4, 4), bool))), "dtype"),
    (lambda put: dipengine.denoise(put(np.zeros((4, 4), np.complex64))), "give .*integers or floats"),
    (lambda put: dipengine.denoise(put(np.zeros((0, 4), np.uint8))), "no pixels"),
    (lambda put: dipengine.denoise(put(noisy()), mask=put(np.zeros((HEIGHT, WIDTH), bool))), "no pixel known"),
    (lambda put: dipengine.denoise(put(noisy()), mask=put(np.ones((3, 4), bool))), "one size"),
    (lambda put: dipengine.denoise(put(noisy()), mask=put(noisy())), "one value a pixel"),
    (lambda put: dipengine.inpaint(put(noisy())), "which pixels are missing"),
    (lambda put: dipengine.denoise(put(noisy()), truth=put(noisy()[1:])), "must agree in size"),
    (lambda put: dipengine.denoise(put(noisy()), truth=put(noisy("uint16"))), "convert one to the other's bit depth"),
    (lambda put: dipengine.denoise(put(noisy("float32")), noise="poisson", gain=1.0, offset=5.0), "below the black level"),
    (lambda put: dipengine.denoise(put(noisy()), alpha=True, axes="HW"), "does not fit axes"),
])
def test_what_cannot_be_used_is_refused_in_a_sentence(stand_in, kind, call, message):
    with pytest.raises(InputError, match=message):
        call(lambda array: given_to(kind, array))
    assert stand_in["trips"] == []


# ---- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("library", ["torch", "cupy"])
@pytest.mark.parametrize("name", CALLS)
def test_an_array_on_a_gpu_is_restored_there(name, library, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device that PyTorch can use")
    if library == "cupy" and importlib.util.find_spec("cupy") is None:
        pytest.skip("needs CuPy")
    restore, make = CALLS[name]
    if library == "torch":
        put, back = lambda array: torch.from_numpy(np.array(array)).to("cuda:0"), lambda tensor: tensor.cpu().numpy()
    else:
        import cupy

        put, back = cupy.asarray, cupy.asnumpy
    expected = restore(make(), lambda array: array, **SETTINGS, device="cuda:0")
    image = put(make())
    trips = []
    for module in [m for key, m in list(sys.modules.items()) if key.startswith("dipengine")]:
        if hasattr(module, "on_host"):
            monkeypatch.setattr(module, "on_host", lambda array, real=namespaces.on_host: trips.append(array.dtype) or real(array))
    result = restore(image, put, **SETTINGS)
    assert type(result.image) is type(image) and result.image.dtype == image.dtype
    assert result.record["device"] == "cuda:0" and all("bool" in str(dtype) for dtype in trips)
    got, scale = back(result.image).astype(np.float64), float(expected.image.max()) - float(expected.image.min())
    assert np.sqrt(np.mean((got - expected.image) ** 2)) < 0.05 * scale  # PyTorch's own operators promise no bits on CUDA
