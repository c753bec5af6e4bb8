"""Fixtures of tests over the emulated CUDA device through the bindings, and of those that need a GPU; to be imported by name."""

from __future__ import annotations

import gc
import importlib

import pytest
import torch
from emulated import NEEDS
from emulated_arrays import EmulatedNative, Memory

from dipengine.kernels import backend

EMULATED = [pytest.mark.slow, *NEEDS, pytest.mark.usefixtures("one_torch_thread")]
OPS = ("adam", "blur", "conv", "deviance", "masked_mse", "philox", "resample")


def emulated(function):
    """Marks a test that runs on the emulated device."""
    for mark in EMULATED:
        function = mark(function)
    return function


@pytest.fixture
def module(emulated_module):
    return emulated_module


@pytest.fixture
def memory(module):
    memory = Memory(module)
    gc.collect()  # fits of other tests enter their device when they end
    memory.happened(), memory.launched_on()
    yield memory
    assert memory.core.emulator_fault() == b""


@pytest.fixture
def on_emulator(module, monkeypatch):
    """Every tensor of PyTorch counts as one on a device, and native ops run on the emulated one. Yields their names as called."""
    native = EmulatedNative(module)
    for name in OPS:
        monkeypatch.setattr(importlib.import_module(f"dipengine.kernels.{name}"), "native", native)
    monkeypatch.setattr(backend, "device_type", lambda tensor: "cuda")
    monkeypatch.setattr(backend, "cuda_missing", lambda: "")
    yield native.calls
    assert native.memory.core.emulator_fault() == b""


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device that PyTorch can use")
    if backend.cuda_missing():
        pytest.skip(f"needs a core with CUDA kernels: {backend.cuda_missing()}")
    return "cuda:0"
