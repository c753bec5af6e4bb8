"""Arrays of the Python API: NumPy, torch, CuPy or anything with DLPack, in and out in the caller's own kind."""

import hashlib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from dipengine.errors import InputError
from dipengine.images.image import Image, opaque
from dipengine.images.missing import known_in
from dipengine.images.namespaces import dense, dtype_name, empty_beside, is_tensor, joined, namespace, on_host

Restore = Callable[[Any], Any]
_NUMBERS = {f"{kind}int{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64)} | {"float16", "bfloat16", "float32", "float64"}
_SUSPICIOUS_WIDTH = 8


def from_array(array: Any, axes: str | None = None, *, alpha: bool = False, stay: bool = False) -> tuple[Image, Restore]:
    """The image in an array, and a function that gives pixels back as the caller's kind of array.

    array: NumPy, torch, CuPy or any array with `__dlpack__`; integers or floats, of any device.
        Pixels that are NaN, or masked (of a NumPy masked array), in any channel are missing: `Image.known` is False there.
    axes: "HW", "HWC" or "CHW"; None reads two axes as "HW" and three as "HWC".
    alpha: whether the last channel is alpha. Without it every channel is colour, however many there are.
    stay: the pixels stay in the array's library and on its device (one that has an array API, or torch); else they are NumPy's.

    The image's pixels are H x W x C in the array's dtype (float16 and bfloat16 become float32) and may share memory with the array;
    nobody writes to them. Those that stay have no sha256, for which they would have to be brought to the host.
    `restore(pixels)` takes H x W x C of the pixels' dtype, of any height and width (super-resolution), with the alpha channel last
    if there was one (as many channels as the array had), and returns the input's library, dtype, device and axes (HxWxC where an
    HxW array gets more than one channel). Libraries without an `asarray` in their array API get a NumPy array back.

    Raises InputError: unusable shape or dtype, infinite values, no known pixel, a batch.
    """
    values, back = _as_they_are(array) if stay else _to_numpy(array)
    axes = _check_axes(tuple(values.shape), axes)
    xp, name = namespace(values), dtype_name(values.dtype)
    if name not in _NUMBERS:
        raise InputError(f"The image array has dtype {values.dtype}; give integers or floats of at most 64 bits.")
    if math.prod(values.shape) == 0:
        raise InputError(f"The image array has shape {tuple(values.shape)}, which holds no pixels; give at least 1 x 1.")
    pixels = dense(_channels_last(xp, values, axes), "float32" if name in ("float16", "bfloat16") else name)
    missing = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
    missing = None if missing is None else _channels_last(np, missing, axes)
    sha256 = "" if stay else hashlib.sha256(pixels.data).hexdigest()
    alpha_plane = None
    if alpha:
        if pixels.shape[2] < 2:
            raise InputError("The image array has one channel, which cannot be alpha; leave alpha out.")
        pixels, alpha_plane = dense(pixels[..., :-1]), dense(pixels[..., -1])
        missing = None if missing is None else missing[..., :-1]  # transparency is what it is, masked or not
    if missing is not None:  # whatever hides under the mask
        pixels = np.where(missing, pixels.dtype.type(np.nan if pixels.dtype.kind == "f" else 0), pixels)
    image = Image(pixels=pixels, alpha=alpha_plane, sha256=sha256)
    image = replace(image, known=known_in(image, missing, "The image array"))

    def restore(restored: Any) -> Any:
        if axes == "HW":
            restored = restored[..., 0] if restored.shape[2] == 1 else restored
        elif axes == "CHW":
            restored = xp.moveaxis(restored, -1, 0)
        return back(dense(restored, values.dtype))

    return image, restore


def with_alpha(pixels: Any, alpha: Any) -> Any:
    """[H, W, C + 1]: the pixels and their transparency [H, W], opaque where None."""
    if alpha is None:
        alpha = empty_beside(pixels, tuple(pixels.shape[:2]), pixels.dtype)
        alpha[...] = opaque(pixels.dtype)
    return joined([pixels, alpha[:, :, None]], axis=2)


def digest(image: Image) -> str:
    """The sha256 of an image from an array: of its values in C order, alpha among them, brought to the host where they are not."""
    if image.sha256:
        return image.sha256
    values = on_host(image.pixels if image.alpha is None else with_alpha(image.pixels, image.alpha))
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()


def _check_axes(shape: tuple[int, ...], axes: str | None) -> str:
    if axes not in (None, "HW", "HWC", "CHW"):
        raise InputError(f"axes is {axes!r}; it takes 'HW', 'HWC' or 'CHW'.")
    if len(shape) == 4:
        raise InputError(f"The image array has shape {shape}, a batch; give one image at a time, such as batch[0], "
                         "or all of them to dipengine.Engine().map.")
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


def _channels_last(xp: Any, values: Any, axes: str) -> Any:
    if axes == "HW":
        return values[..., None]
    return xp.moveaxis(values, 0, -1) if axes == "CHW" else values


def _as_they_are(array: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The array itself, for work where it lives."""
    if is_tensor(array):
        _check_tensor(array)
        return array.detach(), lambda values: values
    return array, lambda values: values


def _to_numpy(array: Any) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    """The array's values on the CPU, and the way back for an array of their dtype."""
    if isinstance(array, np.ma.MaskedArray):
        return np.asarray(array.data), lambda values: values
    if isinstance(array, np.ndarray):
        return np.asarray(array), lambda values: values
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return _torch_to_numpy(torch, array)
    if not hasattr(array, "__dlpack__"):
        raise InputError(f"The image is a {type(array).__name__}; {_instead_of(array)}.")
    return _dlpack_to_numpy(array)


def _instead_of(thing: Any) -> str:
    """What to give in place of a thing that is no array."""
    if isinstance(thing, (str, os.PathLike)):
        return "read the file into an array, or give its path to dipengine.Engine().submit, or to the command line"
    if isinstance(thing, (list, tuple)):
        return "give one image as a NumPy array, or several to dipengine.Engine().map"
    if hasattr(thing, "__array_interface__"):  # Pillow, of whose palettes an array would be the indices
        return "give numpy.asarray of it (of a palette image, of its conversion to RGB)"
    return "give a NumPy array, a torch tensor or an array with DLPack"


def _torch_to_numpy(torch: Any, tensor: Any) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    dtype, device = tensor.dtype, tensor.device
    _check_tensor(tensor)
    values = tensor.detach().cpu()
    if dtype.is_floating_point and dtype not in (torch.float32, torch.float64):
        values = values.to(torch.float32)  # NumPy knows no bfloat16, and float16 is promoted anyway
    return values.numpy(), lambda values: torch.from_numpy(values).to(device=device, dtype=dtype)


def _check_tensor(tensor: Any) -> None:
    dtype = tensor.dtype
    if dtype.is_complex or "strided" not in str(tensor.layout):
        raise InputError(f"The image tensor is {dtype}, {tensor.layout}; give a dense tensor of integers or floats.")


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
