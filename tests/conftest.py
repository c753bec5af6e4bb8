"""Shared by all tests: a small picture with its damaged versions, and the quickest settings that still fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

# A network that fits something within a second; what it restores is not judged.
TINY = {"channels": 8, "levels": 2, "iterations": 12, "stop": "fixed", "threads": 1}


# What is built once for all tests that stand on it, and by which: those of a file, or those that use a fixture.
BUILDS = {
    "emulator": {"test_cuda_bindings.py", "test_cuda_network.py", "test_cuda_plan.py", "test_emulator.py", "test_gpu_plan.py"},
    "gates": {"test_cuda_gates.py"},
    "core": {"test_native_example.py", "test_native_render.py", "core", "prefix"},
}


def group_of(item: pytest.Item) -> str:
    """Tests of one group run one after the other in one process, where there are several: those of a build, or of a file."""
    builds = [name for name, users in BUILDS.items() if item.path.name in users or users & set(item.fixturenames)]
    if builds:
        return builds[0]
    return item.nodeid if item.path.name == "test_native_build.py" else item.path.name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not hasattr(config, "workerinput"):  # of pytest-xdist
        return
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    # What takes longest first: the builds, and the sanitizers', beside the many short tests.
    ranks = {group: rank for rank, group in enumerate(BUILDS)}
    items.sort(key=lambda item: ranks.get(group_of(item), len(ranks) + (item.path.name != "test_native_build.py")))


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
    return tmp_path_factory.mktemp("emulator")


@pytest.fixture(scope="session")
def emulated_module(emulator_folder):
    """The bindings over the emulated CUDA device, built."""
    pytest.importorskip("pybind11", reason="needs pybind11 to build the bindings over the emulated device")
    from emulated import build
    from emulated_arrays import load

    build(emulator_folder, "emulated_native")
    return load(emulator_folder)


@pytest.fixture(scope="session")
def core(tmp_path_factory) -> Path:
    """The build folder of the core as a C++ host would build it: no Python, no tests."""
    from native_builds import ROOT, build

    return build(ROOT, tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="session")
def prefix(core, tmp_path_factory) -> Path:
    """The folder that the core is installed in."""
    from native_builds import CMAKE, run

    folder = tmp_path_factory.mktemp("prefix")
    run(CMAKE, "--install", core, "--prefix", folder)
    return folder
