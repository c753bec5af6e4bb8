"""Arrays of the Python API: NumPy, torch, CuPy or anything with DLPack, in and out in the caller's own kind."""

import hashlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from dipengine.errors import InputError
from dipengine.images.image import Image

Restore = Callable[[np.ndarray], Any]
_SUSPICIOUS_WIDTH = 8


def from_array(array: Any, axes: str | None = None, *, alpha: bool = False) -> tuple[Image, Restore]:
    """The image in an array, and a function that gives pixels back as the caller's kind of array.

    array: NumPy, torch, CuPy or any array with `__dlpack__`; integers or floats, of any device.
    axes: "HW", "HWC" or "CHW"; None reads two axes as "HW" and three as "HWC".
    alpha: whether the last channel is alpha. Without it every channel is colour, however many there are.

    The image's pixels are H x W x C on the CPU in the array's dtype (float16 and bfloat16 become float32) and may
    share memory with the array; nobody writes to them. `restore(pixels)` takes H x W x C of the pixels' dtype, of
    any height and width (super-resolution), with the alpha channel last if there was one (as many channels as the
    array had), and returns the input's library, dtype, device and axes (HxWxC where an HxW array gets more than one
    channel). Libraries without an `asarray` in their
    array API get a NumPy array back.

    Raises InputError: unusable shape or dtype, NaN or infinity, a batch.
    """
    values, back = _to_numpy(array)
    axes = _check_axes(values.shape, axes)
    if values.dtype.kind not in "iuf" or values.dtype.itemsize > 8:
        raise InputError(f"The image array has dtype {values.dtype}; give integers or floats of at most 64 bits.")
    if values.size == 0:
        raise InputError(f"The image array has shape {values.shape}, which holds no pixels; give at least 1 x 1.")
    stored = np.float32 if values.dtype == np.float16 else values.dtype.newbyteorder("=")
    pixels = np.ascontiguousarray(_channels_last(values, axes).astype(stored, copy=False))
    if not np.isfinite(pixels).all():
        raise InputError("The image array holds NaN or infinite values; replace them, and give their places as a mask.")
    sha256 = hashlib.sha256(pixels.data).hexdigest()
    alpha_plane = None
    if alpha:
        if pixels.shape[2] < 2:
            raise InputError("The image array has one channel, which cannot be alpha; leave alpha out.")
        pixels, alpha_plane = np.ascontiguousarray(pixels[..., :-1]), np.ascontiguousarray(pixels[..., -1])

    def restore(restored: np.ndarray) -> Any:
        if axes == "HW":
            restored = restored[..., 0] if restored.shape[2] == 1 else restored
        elif axes == "CHW":
            restored = np.moveaxis(restored, -1, 0)
        return back(np.ascontiguousarray(restored.astype(values.dtype, copy=False)))

    return Image(pixels=pixels, alpha=alpha_plane, sha256=sha256), restore


def _check_axes(shape: tuple[int, ...], axes: str | None) -> str:
    if axes not in (None, "HW", "HWC", "CHW"):
        raise InputError(f"axes is {axes!r}; it takes 'HW', 'HWC' or 'CHW'.")
    if len(shape) == 4:
        raise InputError(f"The image array has shape {shape}, a batch; give one image at a time, such as batch[0].")
    if len(shape) not in (2, 3):
        raise InputError(f"The image array has {len(shape)} axes; give height x width or height x width x channels.")
    if axes is None:
        axes = "HW" if len(shape) == 2 else "HWC"
        if axes == "HWC" and shape[0] <= 4 and shape[2] > _SUSPICIOUS_WIDTH:
            raise InputError(f"The image array has shape {shape}, which looks like channels first; "
                             "pass axes='CHW', or axes='HWC' if it is not.")
    if len(axes) != len(shape):
        raise InputError(f"The image array has shape {shape}, which does not fit axes={axes!r}.")
    return axes


def _channels_last(values: np.ndarray, axes: str) -> np.ndarray:
    if axes == "HW":
        return values[..., None]
    return np.moveaxis(values, 0, -1) if axes == "CHW" else values


def _to_numpy(array: Any) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    """The array's values on the CPU, and the way back for an array of their dtype."""
    if isinstance(array, np.ma.MaskedArray):
        raise InputError("The image array is masked; give array.filled(0), and ~array.mask as the mask.")
    if isinstance(array, np.ndarray):
        return np.asarray(array), lambda values: values
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return _torch_to_numpy(torch, array)
    if not hasattr(array, "__dlpack__"):
        raise InputError(f"The image is a {type(array).__name__}; give a NumPy array, a torch tensor "
                         "or an array with DLPack.")
    return _dlpack_to_numpy(array)


def _torch_to_numpy(torch: Any, tensor: Any) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    dtype, device = tensor.dtype, tensor.device
    if dtype.is_complex or tensor.layout != torch.strided:
        raise InputError(f"The image tensor is {dtype}, {tensor.layout}; give a dense tensor of integers or floats.")
    values = tensor.detach().cpu()
    if dtype.is_floating_point and dtype not in (torch.float32, torch.float64):
        values = values.to(torch.float32)  # NumPy knows no bfloat16, and float16 is promoted anyway
    return values.numpy(), lambda values: torch.from_numpy(values).to(device=device, dtype=dtype)


def _dlpack_to_numpy(array: Any) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    try:
        if hasattr(array, "get"):  # CuPy: DLPack would hand out device memory, which NumPy cannot read
            values = array.get()
        else:
            values = np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"The {type(array).__name__} cannot be read through DLPack ({error}); "
                         "give a NumPy array or a torch tensor.") from error
    space = array.__array_namespace__() if hasattr(array, "__array_namespace__") else None
    if space is None:
        return values, lambda values: values
    device = getattr(array, "device", None)

    def back(values: np.ndarray) -> Any:
        if hasattr(device, "__enter__"):  # CuPy places new arrays by a context, not by an argument
            with device:
                return space.asarray(values)
        return space.asarray(values, device=device) if device is not None else space.asarray(values)

    return values, back
