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
UPSAMPLE = {"none": 0, "nearest": 1, "bilinear": 2}
FLOAT32, BFLOAT16 = 0, 1


def run(*command: object) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=os.environ | {"PATH": SEARCH_PATH})
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    return result.stdout


def build(folder: Path) -> Path:
    """Configure and build the emulator; the folder of its program and library."""
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=SEARCH_PATH) else []
    run(CMAKE, "-S", ROOT, "-B", folder, *generator, "-DDIPENGINE_EMULATOR=ON", "-DDIPENGINE_PORTABLE_ONLY=ON", "-DDIPENGINE_CUDA=OFF",
        "-DCMAKE_CXX_COMPILER=g++")
    run(CMAKE, "--build", folder, "--target", "dipengine_emulator_tests", "dipengine_emulated_device", "--parallel", os.cpu_count() or 1)
    return folder / "tests/emulator"


class Pixels(Structure):
    _fields_ = [("data", c_void_p), ("row_stride", c_int64), ("pixel_stride", c_int64)]


class Affine(Structure):
    _fields_ = [("scale", c_void_p), ("shift", c_void_p)]


class ConvSource(Structure):  # dipengine_conv_cuda_source
    _fields_ = [("height", c_int32), ("width", c_int32), ("channels", c_int32), ("upsample", c_int32), ("x", Pixels),
                ("x_fit_stride", c_int64), ("inner", Affine), ("outer", Affine), ("slope", c_float)]


class ConvParams(Structure):  # dipengine_conv_cuda_params
    _fields_ = [("struct_size", c_size_t), ("source_size", c_size_t), ("stream", c_void_p), ("workspace", c_void_p),
                ("workspace_bytes", c_size_t), ("fits", c_int64), ("active", c_void_p), ("numbers_fit_stride", c_int64),
                ("sources", POINTER(ConvSource)), ("sources_count", c_int32), ("raw_dtype", c_int32), ("kernel", c_int32),
                ("stride", c_int32), ("pad", c_int32), ("padding", c_int32), ("height", c_int32), ("width", c_int32),
                ("channels", c_int32), ("weight", c_void_p), ("weight_fit_stride", c_int64), ("packed", c_void_p),
                ("packed_bytes", c_size_t), ("bias", c_void_p), ("raw", Pixels), ("raw_fit_stride", c_int64), ("mean", c_void_p),
                ("variance", c_void_p), ("gamma", c_void_p), ("beta", c_void_p), ("eps", c_double), ("scale", c_void_p), ("shift", c_void_p)]


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

    def conv_forward(self, problem) -> dict[str, Tensor]:
        """raw, and where the layer asks for them mean and variance, of a conv_problems.Problem in bfloat16."""
        layer, kept = problem.layer, []

        def put(tensor: Tensor) -> int:
            kept.append(self.put(tensor))
            return kept[-1].address

        def affine(given) -> Affine:
            return Affine() if given is None else Affine(put(given[0].float()), put(given[1].float()))

        sources = (ConvSource * len(layer.inputs))()
        for i, given in enumerate(layer.inputs):
            gap = 3 if layer.windows else 0
            x = torch.nn.functional.pad(problem.x[i], (0, gap))
            pixel = given.channels + gap
            sources[i] = ConvSource(given.height, given.width, given.channels, UPSAMPLE[given.upsample],
                                    Pixels(put(x), given.width * pixel, pixel), 0, affine(problem.inner[i]), affine(problem.outer[i]), given.slope)
        height, width = layer.size()
        raw = torch.full((height, width, layer.channels), float("nan"), dtype=problem.raw_dtype)
        device_raw = self.put(raw)
        mean, variance = (self.put(torch.full((layer.channels,), float("nan"))) for _ in range(2))
        p = ConvParams(
            struct_size=sizeof(ConvParams), source_size=sizeof(ConvSource), fits=1, sources=sources, sources_count=len(sources),
            raw_dtype=BFLOAT16 if raw.dtype == torch.bfloat16 else FLOAT32, kernel=layer.kernel, stride=layer.stride, pad=layer.pad,
            padding=int(layer.padding == "zero"), height=height, width=width, channels=layer.channels, weight=put(problem.weight.float()),
            raw=Pixels(device_raw.address, width * layer.channels, layer.channels), eps=1e-5,
        )
        if layer.bias:
            p.bias = put(problem.bias.float())
        if layer.moments:
            p.mean, p.variance = mean.address, variance.address
        bytes_ = c_size_t()
        self.call("dipengine_conv_cuda_packed_bytes", byref(p), byref(bytes_))
        packed = self.empty(bytes_.value)
        p.packed, p.packed_bytes = packed.address, bytes_.value
        self.call("dipengine_conv_cuda_workspace", byref(p), byref(bytes_))
        workspace = self.empty(bytes_.value)
        p.workspace, p.workspace_bytes = workspace.address, bytes_.value
        self.call("dipengine_conv_cuda_pack", byref(p))
        self.call("dipengine_conv_cuda_forward", byref(p))
        out = {"raw": self.get(device_raw, raw)}
        if layer.moments:
            out["mean"], out["variance"] = (self.get(array, torch.empty(layer.channels)) for array in (mean, variance))
        assert packed.intact and workspace.intact and all(array.intact for array in kept)
        return out
