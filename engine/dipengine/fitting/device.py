"""Which device, precision and kernels a fit runs on: `auto` resolved, impossible wishes refused in one sentence."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from dipengine import environment
from dipengine.errors import DependencyError, DeviceError, OutOfMemory
from dipengine.fitting.settings import Settings
from dipengine.kernels import backend, pool


CUDA_CAPABILITY = 8  # at least: tensor cores with bf16 and tf32, asynchronous copies


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
    device = _device(settings.device)
    if device != "cpu" and kernels == "native" and (missing := _no_native_kernels(device)):
        if settings.kernels == "native":
            raise DeviceError(f"Native kernels do not run on {device} ({missing}); use --kernels torch.")
        kernels = "torch"
    return Placement(device, _precision(settings.precision, device), kernels, _threads(settings))


def _no_native_kernels(device: str) -> str:
    """Why the core's kernels cannot run on a CUDA device; empty where they can."""
    if missing := backend.cuda_missing():
        return missing.rstrip(".")
    major, minor = require_torch().cuda.get_device_capability(device)
    if major < CUDA_CAPABILITY:
        return f"they need compute capability {CUDA_CAPABILITY}.0 and it has {major}.{minor}"
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


def _device(wish: str) -> str:
    if wish == "cpu" or (wish == "auto" and not _nvidia_driver()):
        return "cpu"  # known without PyTorch, which takes seconds to load
    if wish == "auto" and find_spec("torch") is None:
        return "cpu"
    torch = require_torch()
    if wish == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wish)
    except (RuntimeError, ValueError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise DeviceError(f"There is no device {wish!r}; choose auto, cpu, or cuda:0 and so on.")
    if device.type == "cpu":
        return "cpu"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index or 0
    if index >= count:
        found = f"{count} CUDA device(s) are" if count else "no CUDA device is"
        raise DeviceError(f"Device {wish} is not available: {found} usable here; use --device cpu.")
    return f"cuda:{index}"


def cuda_devices() -> list[str]:
    """The GPUs that PyTorch can use here: "cuda:0", ..."""
    if not _nvidia_driver() or find_spec("torch") is None:
        return []
    torch = require_torch()
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def _nvidia_driver() -> bool:
    """True where CUDA could be: its driver library can be loaded."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _precision(wish: str, device: str) -> str:
    if wish != "auto":
        return wish
    if device == "cpu":
        return "bf16" if backend.bfloat16_pays() else "fp32"
    return "bf16" if require_torch().cuda.is_bf16_supported() else "fp32"
