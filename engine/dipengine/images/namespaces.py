"""One way to write array code for NumPy, CuPy, torch tensors and whatever else keeps to the array API standard: the namespace of
the array at hand, the few things that libraries name differently, and the ways from one library to another.

Nothing here imports a library: whoever gives one of its arrays has done so.
"""

from __future__ import annotations

import math
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np


def namespace(array: Any) -> Any:
    """The module whose functions work on `array`: the array API's answer, else the package of its type."""
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    if is_tensor(array):
        return sys.modules["torch"]
    return sys.modules[type(array).__module__.partition(".")[0]]


def is_tensor(array: Any) -> bool:
    """Whether it is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


# ---- dtypes ----------------------------------------------------------------------------------------------------------


def cast(array: Any, dtype: Any) -> Any:
    """A copy of `array` in a dtype of its namespace (a tensor of that dtype itself)."""
    if is_tensor(array):
        return array.to(dtype)
    return array.astype(dtype) if hasattr(array, "astype") else namespace(array).astype(array, dtype)


def dtype_in(xp: Any, dtype: Any) -> Any:
    """The namespace's own dtype for one of NumPy's, or for its name; its own ones stay."""
    if isinstance(dtype, (str, type, np.dtype)):
        numpys = hasattr(xp, "dtype") and hasattr(xp, "ndarray")  # NumPy's own, or CuPy's, which are the same
        return xp.dtype(dtype) if numpys else getattr(xp, np.dtype(dtype).name)
    return dtype


def dtype_name(dtype: Any) -> str:
    """NumPy's name of a dtype of any namespace: "uint8", "float32"; "bfloat16" of those that have it."""
    return dtype.name if isinstance(dtype, np.dtype) else str(dtype).rpartition(".")[2]


def integers(xp: Any, dtype: Any) -> bool:
    """Whether a dtype of the namespace holds integers."""
    return dtype_name(dtype_in(xp, dtype)).startswith(("int", "uint"))


def is_float(array: Any) -> bool:
    """Whether an array holds floats, of any width."""
    return dtype_name(array.dtype).startswith(("float", "bfloat"))


# ---- what libraries name differently ---------------------------------------------------------------------------------


def _there(array: Any) -> tuple[AbstractContextManager, dict[str, Any]]:
    """How a library is told to make an array on the device of `array`: within a context (CuPy), or by arguments."""
    device = getattr(array, "device", None)
    if isinstance(array, np.ndarray) or device is None:
        return nullcontext(), {}
    return (device, {}) if hasattr(device, "__enter__") and not is_tensor(array) else (nullcontext(), {"device": device})


def empty_beside(array: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """An unset array of the library, and on the device, of `array`."""
    context, arguments = _there(array)
    with context:
        return namespace(array).empty(shape, dtype=dtype, **arguments)


def dense(array: Any, dtype: Any = None) -> Any:
    """In C order, in that dtype, without a copy where it is so already."""
    if isinstance(array, np.ndarray):
        return np.ascontiguousarray(array.astype(dtype or array.dtype, copy=False))
    xp = namespace(array)
    if dtype is not None and dtype_in(xp, dtype) != array.dtype:
        array = cast(array, dtype_in(xp, dtype))
    if is_tensor(array):
        return array.contiguous()
    return xp.ascontiguousarray(array) if hasattr(xp, "ascontiguousarray") else array


def extremes(array: Any) -> tuple[float, float]:
    """The smallest and the largest value."""
    xp = namespace(array)
    if is_tensor(array) and dtype_name(array.dtype) in _SIGNED:
        array = cast(array, xp.float64)
    return float(xp.min(array)), float(xp.max(array))


def mean(array: Any) -> float:
    """The mean, summed in float64."""
    xp = namespace(array)
    return float(array.mean(dtype=np.float64)) if xp is np else float(xp.mean(cast(array, xp.float64)))


def any_true(array: Any) -> bool:
    """Whether any element of a bool array is True."""
    return bool(namespace(array).any(array))


_SIGNED = {"uint16": "int16", "uint32": "int32", "uint64": "int64"}  # dtypes that PyTorch stores and hardly computes with


def _movable(array: Any) -> Any:
    """The same bits in a dtype whose elements every library can choose and put together."""
    name = dtype_name(array.dtype)
    return array.view(getattr(namespace(array), _SIGNED[name])) if is_tensor(array) and name in _SIGNED else array


def _as_before(moved_bits: Any, dtype: Any) -> Any:
    return moved_bits.view(dtype) if moved_bits.dtype != dtype else moved_bits


def choose(condition: Any, array: Any, other: Any) -> Any:
    """`array` where the condition [H, W, 1] is True, else `other`; both [H, W, C] of one dtype."""
    return _as_before(namespace(array).where(condition, _movable(array), _movable(other)), array.dtype)


def joined(arrays: list[Any], axis: int) -> Any:
    """Arrays of one dtype, one behind the other along an axis."""
    xp = namespace(arrays[0])
    concat = xp.concat if hasattr(xp, "concat") else xp.concatenate
    return _as_before(concat([_movable(array) for array in arrays], axis=axis), arrays[0].dtype)


def interpolated(x: Any, places: np.ndarray, values: np.ndarray) -> Any:
    """Linear interpolation of `values` at rising `places` (both NumPy's, float64), constant beyond them; float64 like x."""
    if isinstance(x, np.ndarray) or np.isscalar(x):
        return np.interp(x, places, values)
    xp = namespace(x)
    low, i = last_below(x, places)
    fraction = (xp.clip(x, float(places[0]), float(places[-1])) - low) / looked_up(i, np.diff(places))
    return looked_up(i, values) + fraction * looked_up(i, np.diff(values))


def last_below(x: Any, places: np.ndarray) -> tuple[Any, Any]:
    """(place, index) of the last of rising `places` but one that is at most x; of the first where none is."""
    xp = namespace(x)
    there = beside(places, x)
    flat = xp.reshape(x, (-1,))
    index = xp.searchsorted(there, flat, right=True) if is_tensor(x) else xp.searchsorted(there, flat, side="right")
    index = xp.reshape(xp.clip(index - 1, 0, len(places) - 2), tuple(x.shape))
    return looked_up(index, places), index


def looked_up(index: Any, values: np.ndarray) -> Any:
    """values[index], with `values` NumPy's, in the library and on the device of the index."""
    xp = namespace(index)
    return xp.reshape(xp.take(beside(values, index), xp.reshape(index, (-1,))), tuple(index.shape))


# ---- from one library and device to another --------------------------------------------------------------------------


def device_of(array: Any) -> str:
    """ "cuda:0" and so on for an array in a GPU's memory, "cpu" for any other."""
    if is_tensor(array):
        return f"cuda:{array.device.index or 0}" if array.device.type == "cuda" else "cpu"
    if isinstance(array, np.ndarray) or not hasattr(array, "__dlpack_device__"):
        return "cpu"
    kind, number = (int(said) for said in array.__dlpack_device__())
    return f"cuda:{number}" if kind in (2, 13) else "cpu"  # kDLCUDA, kDLCUDAManaged


def on_host(array: Any) -> np.ndarray:
    """The values as a NumPy array: those of CPU memory without a copy, others brought from their device."""
    if isinstance(array, np.ndarray):
        return array
    if is_tensor(array):
        return array.detach().cpu().numpy()
    # DLPack would hand out CuPy's device memory, which NumPy cannot read.
    return array.get() if hasattr(array, "get") else np.from_dlpack(array)


def beside(values: np.ndarray, array: Any) -> Any:
    """NumPy values in the library, and on the device, of `array`."""
    if isinstance(array, np.ndarray):
        return values
    context, arguments = _there(array)
    with context:
        return namespace(array).asarray(values, **arguments)


def to_tensor(array: Any) -> Any:
    """The same values as a torch tensor, on the same device, without a copy where libraries allow it."""
    import torch

    if isinstance(array, np.ndarray):
        return torch.from_numpy(array)
    return array if is_tensor(array) else torch.from_dlpack(array)


def from_tensor(tensor: Any, array: Any) -> Any:
    """A torch tensor's values in the library, and on the device, of `array`."""
    if isinstance(array, np.ndarray):
        return tensor.cpu().numpy()
    there = tensor.to(to_tensor(array).device)
    if is_tensor(array):
        return there
    with _there(array)[0]:
        return namespace(array).from_dlpack(there)


def moved(array: Any, beside_array: Any) -> Any:
    """An array of any library in the library, and on the device, of another."""
    if isinstance(beside_array, np.ndarray):
        return on_host(array)
    if isinstance(array, np.ndarray):
        return beside(array, beside_array)
    if type(array) is type(beside_array) and device_of(array) == device_of(beside_array):
        return array
    return from_tensor(to_tensor(array), beside_array)
