"""The emulated CUDA device (tests/emulator) from Python: built on demand, its ops called through ctypes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from ctypes import POINTER, Structure, byref, c_double, c_float, c_int32, c_int64, c_size_t, c_void_p, sizeof
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
SEARCH_PATH = os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent)])
CMAKE = shutil.which("cmake", path=SEARCH_PATH)
NEEDS = [
    pytest.mark.skipif(not (ROOT / "tests/emulator").exists(), reason="needs the source tree"),
    pytest.mark.skipif(CMAKE is None, reason='needs cmake: pip install "dipengine[test]"'),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++: the emulator stands on its thread sanitizer's calls"),
]
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
UPSAMPLE = {"none": 0, "nearest": 1, "bilinear": 2}


def run(*command: object) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=os.environ | {"PATH": SEARCH_PATH})
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    return result.stdout


def build(folder: Path, bindings: str | None = None) -> Path:
    """Configure and build the emulator; the folder of its program and library. Or the target `bindings` in its place, in a folder of its
    own or in the same."""
    try:
        import pybind11

        python = ["-DDIPENGINE_PYTHON=ON", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    except ModuleNotFoundError:
        python = ["-DDIPENGINE_PYTHON=OFF"]
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=SEARCH_PATH) else []
    run(CMAKE, "-S", ROOT, "-B", folder, *generator, "-DDIPENGINE_EMULATOR=ON", "-DDIPENGINE_ONLY_ISAS=portable", "-DDIPENGINE_CUDA=OFF",
        "-DCMAKE_CXX_COMPILER=g++", f"-DPython_EXECUTABLE={sys.executable}", *python)
    targets = [bindings] if bindings else ["dipengine_emulator_tests", "dipengine_emulated_device", "dipengine_runtime_tests",
                                        "dipengine_silicon_harness"]
    run(CMAKE, "--build", folder, "--target", *targets, "--parallel", os.cpu_count() or 1)
    return folder / "tests/emulator"


class Pixels(Structure):
    _fields_ = [("data", c_void_p), ("row_stride", c_int64), ("pixel_stride", c_int64)]


class Affine(Structure):
    _fields_ = [("scale", c_void_p), ("shift", c_void_p)]


class ConvSource(Structure):  # dipengine_conv_cuda_source
    _fields_ = [("height", c_int32), ("width", c_int32), ("channels", c_int32), ("upsample", c_int32), ("x", Pixels),
                ("x_fit_stride", c_int64), ("inner", Affine), ("outer", Affine), ("slope", c_float), ("d_x", Pixels),
                ("d_x_fit_stride", c_int64), ("accumulate", c_int32), ("over_raw", c_int32), ("centre", c_void_p), ("sum", c_void_p),
                ("product", c_void_p), ("fold", c_void_p)]


class ConvHead(Structure):  # dipengine_conv_cuda_head
    _fields_ = [("weight", c_void_p), ("channels", c_int32), ("slope", c_float), ("inner", Affine)]


class ConvParams(Structure):  # dipengine_conv_cuda_params
    _fields_ = [("struct_size", c_size_t), ("source_size", c_size_t), ("stream", c_void_p), ("workspace", c_void_p),
                ("workspace_bytes", c_size_t), ("fits", c_int64), ("active", c_void_p), ("numbers_fit_stride", c_int64),
                ("sources", POINTER(ConvSource)), ("sources_count", c_int32), ("dtype", c_int32), ("raw_dtype", c_int32),
                ("kernel", c_int32), ("stride", c_int32), ("pad", c_int32), ("padding", c_int32), ("height", c_int32), ("width", c_int32),
                ("channels", c_int32), ("weight", c_void_p), ("parameters_fit_stride", c_int64), ("packed", c_void_p),
                ("packed_bytes", c_size_t), ("bias", c_void_p), ("raw", Pixels), ("raw_fit_stride", c_int64), ("mean", c_void_p),
                ("variance", c_void_p), ("gamma", c_void_p), ("beta", c_void_p), ("eps", c_double), ("scale", c_void_p), ("shift", c_void_p),
                ("gradient", Pixels), ("gradient_fit_stride", c_int64), ("gradient_dtype", c_int32), ("gradient_scale", c_void_p),
                ("raw_scale", c_void_p), ("gradient_shift", c_void_p), ("d_weight", c_void_p), ("d_bias", c_void_p),
                ("head", ConvHead), ("tickets", c_void_p)]


class DeviceArray:
    """Memory of the emulated device, at first all NaN, between redzones."""

    def __init__(self, device: Device, bytes_: int) -> None:
        self._core, self.bytes = device.core, bytes_
        self._memory = self._core.emulator_memory(bytes_)
        self.address = self._core.emulator_data(self._memory)

    def __del__(self) -> None:
        self._core.emulator_free(self._memory)

    @property
    def intact(self) -> bool:
        return bool(self._core.emulator_intact(self._memory))


class Device:
    def __init__(self, folder: Path) -> None:
        self.core = ctypes.CDLL(str(next(folder.glob("libdipengine_emulated_device.*"))))
        for name, result, arguments in (
            ("emulator_memory", c_void_p, [c_size_t]), ("emulator_data", c_void_p, [c_void_p]), ("emulator_intact", ctypes.c_int, [c_void_p]),
            ("emulator_free", None, [c_void_p]), ("emulator_fault", ctypes.c_char_p, []), ("dipengine_last_error", ctypes.c_char_p, []),
        ):
            function = getattr(self.core, name)
            function.restype, function.argtypes = result, arguments

    def empty(self, bytes_: int) -> DeviceArray:
        return DeviceArray(self, bytes_)

    def put(self, tensor: Tensor) -> DeviceArray:
        tensor = tensor.contiguous()
        array = self.empty(tensor.numel() * tensor.element_size())
        ctypes.memmove(array.address, tensor.data_ptr(), array.bytes)
        return array

    def get(self, array: DeviceArray, like: Tensor) -> Tensor:
        assert array.intact, "written outside of an array"
        ctypes.memmove(like.data_ptr(), array.address, array.bytes)
        return like

    def call(self, name: str, *arguments: object) -> None:
        status = getattr(self.core, name)(*arguments)
        fault = self.core.emulator_fault().decode()
        assert status == 0 and not fault, fault or self.core.dipengine_last_error().decode()

    def conv(self, problem, tickets: bool = False, large: bool = False) -> dict[str, Tensor]:
        """Every output of a conv_problems.Problem in bfloat16 or float32, by the names that conv_problems gives them.

        tickets: the kernels' own blocks merge what they leave, as in a whole iteration, in place of a second launch.
        large: in the tiles of large images.
        """
        self.core.emulator_few_blocks(0 if large else 64)
        return _Conv(self, problem, tickets).run()


class _Conv:
    def __init__(self, device: Device, problem, tickets: bool) -> None:
        self.merges_itself = tickets
        self.device, self.problem, self.layer = device, problem, problem.layer
        self.kept: list[DeviceArray] = []
        self.results: dict[str, tuple[DeviceArray, Tensor]] = {}

    def put(self, tensor: Tensor) -> int:
        self.kept.append(self.device.put(tensor))
        return self.kept[-1].address

    def result(self, name: str, like: Tensor) -> int:
        address = self.put(like)
        self.results[name] = (self.kept[-1], like)
        return address

    def numbers(self, name: str, channels: int) -> int:
        return self.result(name, torch.full((channels,), float("nan")))

    def affine(self, given) -> Affine:
        return Affine() if given is None else Affine(self.put(given[0].float()), self.put(given[1].float()))

    def source(self, i: int) -> ConvSource:
        given, gap = self.layer.inputs[i], 3 if self.layer.windows else 0
        pixel = given.channels + gap
        x = self.put(torch.nn.functional.pad(self.problem.x[i], (0, gap)))
        source = ConvSource(given.height, given.width, given.channels, UPSAMPLE[given.upsample], Pixels(x, given.width * pixel, pixel), 0,
                            self.affine(self.problem.inner[i]), self.affine(self.problem.outer[i]), given.slope)
        if given.data:
            d_x = self.result(f"d_x{i}", self.problem.old[i].clone())
            source.d_x, source.accumulate = Pixels(d_x, given.width * given.channels, given.channels), int(given.accumulate)
            if self.problem.centre[i] is not None and self.problem.outer[i] is None:
                source.centre = self.put(self.problem.centre[i].float())
            if given.sums:
                source.sum, source.product = (self.numbers(f"{name}{i}", given.channels) for name in ("sum", "product"))
        return source

    def image(self, tensor: Tensor) -> Pixels:
        return Pixels(self.put(tensor), tensor.shape[1] * tensor.shape[2], tensor.shape[2])

    def run(self) -> dict[str, Tensor]:
        layer, problem = self.layer, self.problem
        sources = (ConvSource * len(layer.inputs))(*(self.source(i) for i in range(len(layer.inputs))))
        height, width = layer.size()
        raw = torch.full((height, width, layer.channels), float("nan"), dtype=problem.raw_dtype)
        p = ConvParams(
            struct_size=sizeof(ConvParams), source_size=sizeof(ConvSource), fits=1, sources=sources, sources_count=len(sources),
            dtype=DTYPES[problem.dtype], raw_dtype=DTYPES[raw.dtype], kernel=layer.kernel, stride=layer.stride, pad=layer.pad,
            padding=int(layer.padding == "zero"), height=height, width=width, channels=layer.channels, weight=self.put(problem.weight.float()),
            raw=Pixels(self.result("raw", raw), width * layer.channels, layer.channels), eps=1e-5,
        )
        if layer.bias:
            p.bias = self.put(problem.bias.float())
        if layer.moments:
            p.mean, p.variance = self.numbers("mean", layer.channels), self.numbers("variance", layer.channels)
        bytes_, more = c_size_t(), c_size_t()
        self.device.call("dipengine_conv_cuda_packed_bytes", byref(p), byref(bytes_))
        self.device.call("dipengine_conv_cuda_workspace", byref(p), byref(more))
        self.space(p, bytes_.value, more.value)
        self.tickets(p)
        self.device.call("dipengine_conv_cuda_pack", byref(p))
        self.device.call("dipengine_conv_cuda_forward", byref(p))

        p.raw, p.raw_dtype = self.image(problem.raw), DTYPES[problem.dtype]
        p.gradient, p.gradient_dtype = self.image(problem.gradient), DTYPES[problem.raw_dtype]
        if layer.coefficients:
            p.gradient_scale, p.raw_scale, p.gradient_shift = (self.put(c.float()) for c in problem.coefficients)
        p.d_weight = self.result("d_weight", torch.full_like(problem.weight, float("nan")))
        if layer.bias:
            p.d_bias = self.numbers("d_bias", layer.channels)
        self.device.call("dipengine_conv_cuda_weight_gradient_workspace", byref(p), byref(more))
        self.space(p, 0, more.value)
        self.tickets(p)
        self.device.call("dipengine_conv_cuda_weight_gradient", byref(p))
        self.device.call("dipengine_conv_cuda_data_gradient_sizes", byref(p), byref(bytes_), byref(more))
        self.space(p, bytes_.value, more.value)
        self.device.call("dipengine_conv_cuda_data_pack", byref(p))
        self.device.call("dipengine_conv_cuda_data_gradient", byref(p))
        assert all(array.intact for array in self.kept)
        return {name: self.device.get(array, like) for name, (array, like) in self.results.items()}

    def tickets(self, p: ConvParams) -> None:
        if self.merges_itself:
            count = c_int64()
            self.device.call("dipengine_conv_cuda_tickets", byref(p), byref(count))
            p.tickets = self.put(torch.zeros(count.value, dtype=torch.int32))

    def space(self, p: ConvParams, packed: int, workspace: int) -> None:
        self.kept += [self.device.empty(packed), self.device.empty(workspace)]
        p.packed, p.packed_bytes = self.kept[-2].address, packed
        p.workspace, p.workspace_bytes = self.kept[-1].address, workspace
