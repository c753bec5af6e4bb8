"""CUDA arrays without a GPU: memory of the emulated device, shown by the protocols by which real ones are shown.

`EmulatedNative` is the bindings over that device for code that holds PyTorch tensors in CPU memory.
"""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

CUDA = 2  # kDLCUDA
BFLOAT16 = 4  # kDLBfloat


class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class _Dtype(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device", _Device), ("ndim", ctypes.c_int32), ("dtype", _Dtype),
                ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p), ("offset", ctypes.c_uint64)]


def load(folder: Path) -> ModuleType:
    """The Python module over the emulated device, from a build folder."""
    path = next((folder / "emulated").glob("_native*"))
    spec = importlib.util.spec_from_file_location("emulated._native", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class OneGpu:
    """A core with CUDA kernels on a machine with one GPU, as far as anybody asks who places a fit."""

    def __init__(self, native, missing=""):
        self.native, self.missing = native, missing

    def cuda_devices(self):
        return (0, self.missing) if self.missing else (1, "")

    def __getattr__(self, name):
        return getattr(self.native, name)


class Memory:
    """The emulated device, as its module's C functions give it."""

    def __init__(self, module: ModuleType) -> None:
        self.core = ctypes.CDLL(module.__file__)
        for name, result, arguments in (
            ("emulator_memory", ctypes.c_void_p, [ctypes.c_size_t]), ("emulator_data", ctypes.c_void_p, [ctypes.c_void_p]),
            ("emulator_intact", ctypes.c_int, [ctypes.c_void_p]), ("emulator_free", None, [ctypes.c_void_p]),
            ("emulator_fault", ctypes.c_char_p, []), ("emulator_happened", ctypes.c_char_p, []),
            ("emulator_launched_on", ctypes.c_char_p, []), ("emulator_stored_pixels", ctypes.c_int64, [ctypes.c_int64]),
        ):
            function = getattr(self.core, name)
            function.restype, function.argtypes = result, arguments

    def happened(self) -> str:
        """Devices entered and streams put in order since the last call."""
        return self.core.emulator_happened().decode()

    def launched_on(self) -> list[int]:
        """The streams of the launches since the last call."""
        return [int(number) for number in self.core.emulator_launched_on().decode().split(";")[:-1]]


class Array:
    """An array on the emulated device; what a call asked its protocols for is in `asked`.

    `numpy` is its memory (bfloat16 as uint16). `dlpack`, `interface`: which protocols it speaks.
    """

    def __init__(self, memory: Memory, values: np.ndarray, *, bfloat16: bool = False, device: int = 0, offset: int = 0) -> None:
        """offset: bytes by which it begins behind an aligned address."""
        self.memory, self.bfloat16, self.device = memory, bfloat16, device
        # In `values`' own memory order, gaps between its rows included.
        low = sum((n - 1) * s for n, s in zip(values.shape, values.strides) if s < 0)
        assert low == 0
        bytes_ = sum((n - 1) * s for n, s in zip(values.shape, values.strides)) + values.itemsize if values.size else 0
        self._handle = memory.core.emulator_memory(bytes_ + offset)
        address = memory.core.emulator_data(self._handle) + offset
        raw = np.frombuffer((ctypes.c_char * bytes_).from_address(address), np.uint8) if bytes_ else np.empty(0, np.uint8)
        self.numpy = np.ndarray(values.shape, values.dtype, raw, strides=values.strides)
        self.numpy[...] = values
        self.asked: list[dict] = []

    def __del__(self) -> None:
        self.memory.core.emulator_free(self._handle)

    @property
    def intact(self) -> bool:
        return bool(self.memory.core.emulator_intact(self._handle))


class DlpackArray(Array):
    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device

    def __dlpack__(self, *, stream=None, max_version=None):
        self.asked.append({"stream": stream, "max_version": max_version})
        return self._capsule(max_version)

    def _capsule(self, max_version):
        capsule = self.numpy.__dlpack__(max_version=max_version) if max_version else self.numpy.__dlpack__()
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        # A versioned capsule has a version, a context, a deleter and flags in front of its tensor.
        name, offset = (b"dltensor_versioned", 32) if max_version else (b"dltensor", 0)
        tensor = _DLTensor.from_address(get(capsule, name) + offset)
        tensor.device = _Device(CUDA, self.device)
        if self.bfloat16:
            tensor.dtype.code = BFLOAT16
        return capsule


class OldDlpackArray(DlpackArray):
    """As libraries from before DLPack 1.0 write it."""

    def __dlpack__(self, stream=None):
        self.asked.append({"stream": stream})
        return self._capsule(None)


class InterfaceArray(Array):
    """`stream` and `read_only` as the interface shows them."""

    stream: int | None = None
    read_only = False

    @property
    def __cuda_array_interface__(self) -> dict:
        self.asked.append({})
        shown = {"shape": self.numpy.shape, "typestr": self.numpy.dtype.str, "data": (self.numpy.ctypes.data, self.read_only),
                 "version": 3, "strides": self.numpy.strides}
        return shown | ({} if self.stream is None else {"stream": self.stream})


class EmulatedNative:
    """The emulated module for tensors of PyTorch in CPU memory: each call's are copied to the device and back.

    A tensor that a call is given twice is one array there. Arguments that the bindings read in the host's memory (`ON_HOST`)
    stay what they are.
    """

    ON_HOST = {"steps", "learning_rate", "active"}

    def __init__(self, module: ModuleType) -> None:
        self.module, self.memory = module, Memory(module)
        self.calls: list[str] = []

    def Source(self, x: Tensor, **named) -> _Source:
        return _Source({"x": x, **named})

    def __getattr__(self, name: str):
        function = getattr(self.module, name)
        if not callable(function) or name[0].isupper():
            return function

        def call(*arguments, **named):
            self.calls.append(name)
            lent: dict[tuple, tuple[Tensor, Array]] = {}
            arguments = [self._lend(argument, lent) for argument in arguments]
            named = {key: value if key in self.ON_HOST else self._lend(value, lent) for key, value in named.items()}
            result = function(*arguments, **named)
            for tensor, array in lent.values():
                assert array.intact, f"{name} wrote outside of an array"
                _numpy(tensor)[...] = array.numpy
            return result

        return call

    def _lend(self, value, lent: dict):
        if isinstance(value, Tensor):
            place = value.data_ptr(), value.shape, value.stride(), value.dtype
            if place not in lent:
                kind = {"bfloat16": value.dtype == torch.bfloat16, "offset": value.data_ptr() % 16}
                lent[place] = value.detach(), DlpackArray(self.memory, _numpy(value), **kind)
            return lent[place][1]
        if isinstance(value, _Source):
            return self.module.Source(**{key: self._lend(item, lent) for key, item in value.arguments.items()})
        if isinstance(value, (list, tuple)):
            return type(value)(self._lend(item, lent) for item in value)
        if type(value).__name__ == "Pool":
            return None  # of the other module
        if callable(value):
            return lambda bytes_: self._lend(value(bytes_), lent)
        return value


@dataclass(frozen=True)
class _Source:
    """What a `Source` of the module is made of, until a call brings it to the device."""

    arguments: dict


def _numpy(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as it lies there."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
