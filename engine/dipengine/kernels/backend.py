"""Which kernels run: the native C++ core where it is built, else their plain twins in PyTorch (or NumPy)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from dipengine.errors import DeviceError, InputError

if TYPE_CHECKING:
    from torch import Tensor

try:
    from dipengine import _native as native
except ImportError as _error:
    native = None
    _reason = str(_error)
else:
    _reason = ""

BUILD_COMMAND = "pip install --force-reinstall --no-deps -e .   (in the source tree)"
KERNELS = ("auto", "native", "torch")
_ORDER = ("portable", "avx2", "avx512", "avx512bf16", "avx512fp16")


def native_available() -> bool:
    """True where the compiled module `dipengine._native` can be imported."""
    return native is not None


def native_error() -> str:
    """Why the compiled module cannot be imported; empty where it can."""
    return _reason


def resolve(kernels: str) -> str:
    """ "native" or "torch" for "auto", "native" or "torch".

    Raises DeviceError when native kernels are asked for and not built, InputError for another word.
    """
    if kernels not in KERNELS:
        raise InputError(f"There are no kernels {kernels!r}; choose auto, native or torch.")
    if kernels == "native" and native is None:
        raise DeviceError(f"The native core is not built ({_reason}); build it with: {BUILD_COMMAND}")
    if kernels == "auto":
        return "torch" if native is None else "native"
    return kernels


def choose(kernels: str, tensor: Tensor, *, on_cuda: bool = True) -> str:
    """ "native" or "torch" for an op on `tensor`: in CPU memory what `resolve` says, on another device what can run there.

    on_cuda: whether the op's CUDA kernels do what they are asked for (its dtypes, its sizes). "auto" takes native kernels on a
    CUDA device where the core has them and they do. Raises as `resolve` does, and DeviceError where "native" cannot be had.
    """
    choice = resolve(kernels)
    device = device_type(tensor)
    if device == "cpu" or choice == "torch":
        return choice
    if device != "cuda":
        missing = f"Native kernels do not run on {tensor.device}; move the tensors to a CPU or a CUDA device."
    elif not on_cuda:
        missing = f"The CUDA kernels do not take {tensor.dtype} here; convert it or use kernels='torch'."
    else:
        missing = cuda_missing()
    if missing and kernels == "native":
        raise DeviceError(missing)
    return "torch" if missing else "native"


def device_type(tensor: Tensor) -> str:
    """ "cpu", "cuda" or another word of PyTorch's for where a tensor lives."""
    return tensor.device.type


@cache
def cuda_missing() -> str:
    """Why native kernels cannot run on CUDA tensors here, in a sentence; empty where they can."""
    return f"The native core is not built ({_reason})." if native is None else native.cuda_devices()[1]


def build_info() -> dict[str, Any]:
    """What the native core was built from: version, abi_version, compiler, build_type, instruction_sets_built (list),
    cuda (in words); and instruction_set, the one in use. Raises DeviceError where it is not built."""
    resolve("native")
    return {**native.build_info(), "instruction_set": native.cpu_isa()}


def instruction_set() -> str:
    """The instruction set of the native core in use ("none" where it is not built): the fastest here, or DIPENGINE_ISA."""
    return native.cpu_isa() if native is not None else "none"


def instruction_sets() -> tuple[str, ...]:
    """All instruction sets that this CPU has for native kernels, lowest first; empty where the core is not built."""
    return () if native is None else tuple(name for name in _ORDER if native.cpu_has_isa(name))


def bfloat16_pays() -> bool:
    """Whether native fits are faster with bf16 images on the instruction set in use."""
    return native is not None and native.cpu_bfloat16()
