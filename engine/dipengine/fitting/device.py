"""Which device, precision and kernels a fit runs on: `auto` resolved, impossible wishes refused in one sentence."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from dipengine import environment
from dipengine.errors import DependencyError, DeviceError, OutOfMemory
from dipengine.fitting.settings import Settings
from dipengine.kernels import backend, pool


@dataclass(frozen=True)
class Placement:
    """Where and how a fit computes."""

    device: str  # "cpu" or "cuda:N"
    precision: str  # "fp32" or "bf16" (bf16 products with float32 accumulation, float32 weights)
    kernels: str  # "native" or "torch"
    threads: int  # CPU threads of PyTorch and of the native ops


def require_torch():
    """Import PyTorch, or say how to install it."""
    try:
        import torch
    except ImportError as error:
        raise DependencyError('This fit needs PyTorch; install it with: pip install "dipengine[cpu]"') from error
    return torch


def place(settings: Settings) -> Placement:
    """Resolve device, precision, kernels and threads. Raises DeviceError when what was asked for is not here."""
    kernels = backend.resolve(settings.kernels or environment.default_kernels())
    on_cuda = kernels == "native" and not backend.cuda_missing()
    device = _device(settings.device, on_cuda)
    if device != "cpu" and not on_cuda:
        if settings.kernels == "native":
            raise DeviceError(f"Native kernels do not run on {device} ({backend.cuda_missing().rstrip('.')}); use --kernels torch.")
        kernels = "torch"
    return Placement(device, _precision(settings.precision, device, on_cuda), kernels, _threads(settings))


def for_autograd(placement: Placement, settings: Settings) -> Placement:
    """Where a fit that the native plan does not cover runs: by PyTorch's autograd, on a GPU over the core's kernels where they run.

    Raises DeviceError where PyTorch cannot use the GPU, or the native kernels, that were asked for.
    """
    if placement.device == "cpu":
        return placement
    device, kernels = _device(settings.device, native_cuda=False), placement.kernels
    if device != "cpu" and kernels == "native" and (missing := _no_native_kernels(device)):
        if settings.kernels == "native":
            raise DeviceError(f"Native kernels do not run on {device} ({missing}); use --kernels torch.")
        kernels = "torch"
    return Placement(device, _precision(settings.precision, device), kernels, placement.threads)


def _no_native_kernels(device: str) -> str:
    """Why the core's kernels cannot run on a CUDA device; empty where they can."""
    if missing := backend.cuda_missing():
        return missing.rstrip(".")
    major, minor = require_torch().cuda.get_device_capability(device)
    least = backend.native.CUDA_LEAST_CAPABILITY
    if major < least:
        return f"they need compute capability {least}.0 and it has {major}.{minor}"
    return ""


@contextmanager
def threads(placement: Placement, *, torch_is_idle: bool) -> Iterator[None]:
    """Within: the thread count for the native pool and for PyTorch, whose own count returns afterwards.

    torch_is_idle: PyTorch has only small change to do between native ops. Then it gets one thread: its OpenMP workers
    spin for milliseconds after every parallel region, on the cores that the native pool needs (measured: a quarter of an
    iteration).
    """
    import torch

    before = torch.get_num_threads()
    pool.set_threads(placement.threads)
    torch.set_num_threads(1 if torch_is_idle else placement.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns what PyTorch and NumPy raise when memory runs out, on the CPU or a GPU, into OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # PyTorch has a class of its own for GPUs only.
        said = str(error)
        if not (isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said):
            raise
        raise OutOfMemory("The fit needs more memory than there is; use a smaller image, fewer channels or the preset fast, "
                       "or another device.") from error


def _threads(settings: Settings) -> int:
    return settings.threads or environment.default_threads()


def _device(wish: str, native_cuda: bool) -> str:
    """native_cuda: the core has kernels for GPUs, and sees one; else PyTorch is asked."""
    found = re.fullmatch(r"(auto|cpu|cuda)(?::(\d+))?", wish)
    if found is None or (wish != "auto" and found[1] == "auto"):
        raise DeviceError(f"There is no device {wish!r}; choose auto, cpu, or cuda:0 and so on.")
    if found[1] == "cpu" or (wish == "auto" and not (native_cuda or _nvidia_driver())):
        return "cpu"  # known without PyTorch, which takes seconds to load
    if wish == "auto" and not native_cuda and find_spec("torch") is None:
        return "cpu"
    count = backend.native.cuda_devices()[0] if native_cuda else _torch_devices()
    if wish == "auto":
        return "cuda:0" if count else "cpu"
    index = int(found[2] or 0)
    if index >= count:
        found = f"{count} CUDA device(s) are" if count else "no CUDA device is"
        raise DeviceError(f"Device {wish} is not available: {found} usable here; use --device cpu.")
    return f"cuda:{index}"


def _torch_devices() -> int:
    torch = require_torch()
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def cuda_devices() -> list[str]:
    """The GPUs that can be used here, by native kernels or by PyTorch: "cuda:0", ..."""
    if not backend.cuda_missing():
        count = backend.native.cuda_devices()[0]
    else:
        count = _torch_devices() if _nvidia_driver() and find_spec("torch") is not None else 0
    return [f"cuda:{index}" for index in range(count)]


def memory_of(device: str) -> int | None:
    """Bytes that this process can have where a fit runs; None where nobody can tell."""
    return environment.memory() if device == "cpu" else cuda_memory(device)


def cuda_memory(device: str) -> int | None:
    """Bytes that can be had on "cuda:N"; None where nobody can tell."""
    index = int(device.partition(":")[2])
    if not backend.cuda_missing():
        return backend.native.cuda_memory(index)[0]
    if find_spec("torch") is None:
        return None
    return require_torch().cuda.mem_get_info(index)[0]


def cuda_name(device: str) -> str:
    """What "cuda:N" is called: "NVIDIA H200"."""
    if not backend.cuda_missing():
        return backend.native.cuda_device_name(int(device.partition(":")[2]))
    return require_torch().cuda.get_device_name(device)


def _nvidia_driver() -> bool:
    """True where CUDA could be: its driver library can be loaded."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _precision(wish: str, device: str, native_cuda: bool = False) -> str:
    if wish != "auto":
        return wish
    if native_cuda and device != "cpu":
        return "bf16"  # every device that the kernels run on multiplies it on tensor cores
    if device == "cpu":
        return "bf16" if backend.bfloat16_pays() else "fp32"
    return "bf16" if require_torch().cuda.is_bf16_supported() else "fp32"
