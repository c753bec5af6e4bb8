"""Arrays that stand for those of a device, whose memory the host cannot read, where there is no GPU: of `array_api_strict` (which
refuses what the array API does not name) and torch tensors in CPU memory. Whoever brings one of the image's size to the host is noted.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

try:
    import array_api_strict as strict
except ImportError:  # tests on a GPU do without
    strict = None

from conftest import synthetic_picture
from dipengine import api, restoration
from dipengine.fitting import native_fit
from dipengine.fitting.device import Placement
from dipengine.images import namespaces

HEIGHT, WIDTH = 40, 52  # of no other array of the fit
KINDS = ("strict", "torch")
COMPARED = ("parameters", "value_map", "loss", "psnr_peak", "psnr", "ssim", "delivered_iteration", "stop_reason")  # of records


def given_to(kind, array):
    return strict.asarray(array) if kind == "strict" else torch.from_numpy(np.array(array))


def kind_of(array):
    if isinstance(array, torch.Tensor):
        return "torch"
    return "strict" if type(array).__module__.startswith("array_api_strict") else "numpy"


@pytest.fixture
def stand_in(monkeypatch):
    """Fits are on PyTorch's CPU ops wherever they are asked to run. Yields the devices asked for, and the names of host trips."""
    if strict is None:
        pytest.skip("needs array_api_strict")
    seen = {"devices": [], "trips": []}

    def device_of(array):
        return "cpu" if kind_of(array) == "numpy" else "cuda:0"

    def place(settings):
        seen["devices"].append(settings.device)
        return Placement("cpu", "fp32", "torch", 1)

    def on_host(array, real=namespaces.on_host):
        note(array)
        return real(array)

    def note(array):
        # One bit a pixel is all that the record's digest of the mask takes.
        if kind_of(array) != "numpy" and {HEIGHT, WIDTH} <= set(array.shape) and "bool" not in str(array.dtype):
            seen["trips"].append(tuple(array.shape))

    def guarded(method):
        def call(tensor, *arguments, **named):
            note(tensor)
            return method(tensor, *arguments, **named)
        return call

    for module in [m for name, m in list(sys.modules.items()) if name.startswith("dipengine")]:
        if hasattr(module, "on_host"):
            monkeypatch.setattr(module, "on_host", on_host)
    for name in ("cpu", "numpy", "tolist", "__array__"):
        monkeypatch.setattr(torch.Tensor, name, guarded(getattr(torch.Tensor, name)))
    monkeypatch.setattr(strict._array_object.Array, "__array__", guarded(strict._array_object.Array.__array__), raising=False)
    monkeypatch.setattr(namespaces, "device_of", device_of)
    monkeypatch.setattr(api, "device_of", device_of)
    monkeypatch.setattr(api, "cuda_devices", lambda: ["cuda:0"])
    monkeypatch.setattr(restoration, "place", place)
    monkeypatch.setattr(native_fit, "supports", lambda *given: False)
    return seen


def noisy(dtype="uint8", channels=3, seed=0):
    picture = synthetic_picture(HEIGHT, WIDTH, channels) + np.random.default_rng(seed).normal(0, 0.1, (HEIGHT, WIDTH, channels))
    top = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 1
    return (np.clip(picture, 0, 1) * top).astype(dtype)


def mask_of(seed=1):
    return np.random.default_rng(seed).random((HEIGHT, WIDTH)) > 0.3


def given_back(array):
    return array.detach().numpy() if isinstance(array, torch.Tensor) else np.from_dlpack(array)
