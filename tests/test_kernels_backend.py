"""Choice of kernels, the pool, build information, and tensors that come in through DLPack."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dipengine.errors import DeviceError, InputError
from dipengine.kernels import backend, pool
from dipengine._version import __version__

SET_IN_USE = "from dipengine.kernels import backend; print(backend.instruction_set())"


def python(code: str, **environment: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)
    return result.stdout.strip() or result.stderr.strip().splitlines()[-1]


def test_the_native_core_is_built_and_of_this_version():
    info = backend.build_info()
    assert backend.native_available() and backend.native_error() == ""
    assert (info["version"], info["abi_version"]) == (__version__, 2)
    assert info["instruction_sets_built"][0] == "portable" and info["instruction_set"] in backend.instruction_sets()


def test_the_set_chosen_is_the_highest_or_on_intel_without_float16_the_one_below_bf16_products():
    sets = backend.instruction_sets()
    intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    slow = intel and sets[-1] == "avx512bf16"
    assert sets[0] == "portable" and python(SET_IN_USE, DIPENGINE_ISA="") == ("avx512" if slow else sets[-1])
    assert python(SET_IN_USE, DIPENGINE_ISA="avx512fp16") == sets[-1]


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512bf16", "avx512fp16"])
def test_bf16_images_are_the_default_where_the_cpu_rounds_to_them(isa):
    wide = isa.startswith("avx512") and "avx512bf16" in backend.instruction_sets()
    code = "from dipengine.fitting import device, settings; print(device.place(settings.Settings(device='cpu')).precision)"
    assert python(code, DIPENGINE_ISA=isa) == ("bf16" if wide else "fp32")


def test_kernels_are_resolved():
    assert [backend.resolve(word) for word in ("auto", "native", "torch")] == ["native", "native", "torch"]
    with pytest.raises(InputError):
        backend.resolve("cuda")


def test_without_the_core_auto_is_torch_and_native_says_how_to_build(monkeypatch):
    monkeypatch.setattr(backend, "native", None)
    assert backend.resolve("auto") == "torch" and backend.instruction_sets() == () and not backend.native_available()
    with pytest.raises(DeviceError, match="pip install"):
        backend.resolve("native")


def test_the_environment_caps_the_instruction_set():
    assert python(SET_IN_USE, DIPENGINE_ISA="portable") == "portable"
    assert "DIPENGINE_ISA" in python(SET_IN_USE, DIPENGINE_ISA="mmx")


def test_the_pool_has_the_threads_asked_for():
    try:
        pool.set_threads(3)
        assert pool.get().threads == 3
        with pytest.raises(InputError):
            pool.set_threads(0)
    finally:
        pool.set_threads(2)


def test_a_forked_child_makes_its_own_pool():
    code = (
        "import os\nfrom dipengine.kernels import philox, pool\npool.set_threads(2)\n"
        "first = philox.uniform(1, 2, 3, 100000, kernels='native')\nchild = os.fork()\n"
        "if child == 0:\n    second = philox.uniform(1, 2, 3, 100000, kernels='native')\n"
        "    os._exit(0 if (first == second).all() and pool.get().threads >= 1 else 1)\n"
        "print(os.waitpid(child, 0)[1])"
    )
    assert python(code) == "0"


def uniforms(out):
    backend.native.philox_uniform(1, 2, 3, out)
    return out


def test_numpy_and_torch_tensors_are_written_alike():
    torch = pytest.importorskip("torch")
    assert uniforms(np.empty(10, np.float32)).tolist() == uniforms(torch.empty(10)).tolist()
    assert uniforms(torch.empty(2, 5)).flatten().tolist() == uniforms(torch.empty(10)).tolist()


def test_capsules_and_older_producers_are_accepted():
    class Older:
        """A producer from before DLPack 1.0: unversioned capsules, no max_version."""

        def __init__(self, array):
            self.array = array

        def __dlpack__(self, stream=None):
            return self.array.__dlpack__()

    expected = uniforms(np.empty(10, np.float32))
    array = np.zeros(10, np.float32)
    uniforms(Older(array))
    assert np.array_equal(array, expected)
    array[:] = 0
    uniforms(array.__dlpack__())
    assert np.array_equal(array, expected)
    array[:] = 0
    uniforms(array.__dlpack__(max_version=(1, 0)))
    assert np.array_equal(array, expected)


def test_tensors_that_cannot_be_written_are_refused():
    read_only = np.empty(10, np.float32)
    read_only.setflags(write=False)
    for bad in (read_only, np.empty(10), np.empty(10, np.uint8), np.empty((4, 4), np.float32).T[1:], [1.0, 2.0], None, "word"):
        with pytest.raises((InputError, BufferError)):
            uniforms(bad)


def test_a_tensor_that_requires_grad_is_not_written():
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match="requires grad"):
        uniforms(torch.empty(10, requires_grad=True))


def test_many_calls_leak_no_memory():
    import resource

    out = np.empty(4, np.float32)
    for _ in range(2000):
        uniforms(out)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(50_000):
        uniforms(out)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 3000  # kilobytes; a capsule is over 100 bytes
