"""Shared by all tests: a small picture with its damaged versions, and the quickest settings that still fit."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

# A network that fits something within a second; what it restores is not judged.
TINY = {"channels": 8, "levels": 2, "iterations": 12, "stop": "fixed", "threads": 1}


# Files of the tests that take longest, builds for the most part. Where two processes share the tests, a file at a time, these come first.
LONGEST = ("test_emulator.py", "test_cuda_gates.py", "test_native_build.py", "test_cuda_bindings.py", "test_cuda_plan.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes of pytest-xdist
        ranks = {name: rank for rank, name in enumerate(LONGEST)}
        items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


def shared_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """An empty folder, or that of the same name which another process of these tests has begun to fill."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return factory.mktemp(name)
    folder = factory.getbasetemp().parent / f"shared_{name}"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def alone_in(folder: Path):
    """One process at a time: the others wait."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def synthetic_picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth shades with an edge and a disc, float64 [H, W, C] in [0, 1]."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    shade = 0.3 + 0.4 * x + 0.2 * np.sin(6 * y)
    disc = ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.04) * 0.3
    planes = [np.clip(shade * (1 - 0.2 * c) + disc * (c % 2), 0, 1) for c in range(channels)]
    return np.stack(planes, axis=-1)


@pytest.fixture
def one_torch_thread():
    """For tests of many small PyTorch calls: its idle workers would spin and take the cores from everybody."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def each_isa():
    """Sets and yields one instruction set of this CPU after the other for native kernels."""
    from dipengine.kernels import backend

    def sets():
        for isa in backend.instruction_sets():
            backend.native.set_cpu_isa(isa)
            yield isa

    yield sets
    backend.native.set_cpu_isa(None)


def skip_without_provider(provider: str) -> None:
    """Skips a test on a GPU where this ONNX Runtime is built without it, as the one for CPUs is."""
    import onnxruntime

    name = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}[provider]
    if name not in onnxruntime.get_available_providers():
        pytest.skip(f"needs an ONNX Runtime with {name}: pip install onnxruntime-gpu")


@pytest.fixture
def picture() -> np.ndarray:
    """uint8 [40, 52, 3]: sides that no power of two divides."""
    return np.rint(synthetic_picture(40, 52) * 255).astype(np.uint8)


@pytest.fixture
def noisy(picture: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 25, picture.shape)
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def emulator_folder(tmp_path_factory) -> Path:
    """Where whatever stands on the emulator is built: it has most of its objects in common."""
    return shared_folder(tmp_path_factory, "emulator")


@pytest.fixture(scope="session")
def emulated_module(emulator_folder):
    """The bindings over the emulated CUDA device, built."""
    pytest.importorskip("pybind11", reason="needs pybind11 to build the bindings over the emulated device")
    from emulated import build
    from emulated_arrays import load

    with alone_in(emulator_folder):
        build(emulator_folder, "emulated_native")
    return load(emulator_folder)


@pytest.fixture(scope="session")
def core(tmp_path_factory) -> Path:
    """The build folder of the core as a C++ host would build it: no Python, no tests."""
    from native_builds import ROOT, build

    folder = shared_folder(tmp_path_factory, "core")
    with alone_in(folder):
        return build(ROOT, folder)


@pytest.fixture(scope="session")
def prefix(core, tmp_path_factory) -> Path:
    """The folder that the core is installed in."""
    from native_builds import CMAKE, run

    folder = tmp_path_factory.mktemp("prefix")
    run(CMAKE, "--install", core, "--prefix", folder)
    return folder
