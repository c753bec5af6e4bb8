"""Read a blur kernel: an image, a .npy array or a matrix as text."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from dipengine.errors import ImageError, InputError
from dipengine.images.limits import MAX_PIXELS
from dipengine.images.reading import check_readable, read_image

TEXT_ENDINGS = (".txt", ".csv", ".tsv", ".dat")


def read_kernel(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A kernel [kh, kw], float64 of sum 1, from a file.

    An image (grey, or of equal colours), a `.npy` array, or text (`.txt`, `.csv`, `.tsv`, `.dat`): numbers separated by
    spaces, commas or semicolons, one row a line. Raises ImageError (a file that cannot be read) and InputError (values that
    are no kernel).
    """
    source = os.fspath(path)
    check_readable(Path(source))
    ending = Path(source).suffix.lower()
    if ending == ".npy":
        try:
            values = np.load(source, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ImageError(f"The kernel {source} is not a readable .npy array ({error}); save it with numpy.save.") from error
    elif ending in TEXT_ENDINGS:
        values = _read_text(source)
    else:
        image = read_image(source, max_pixels=max_pixels)
        if (image.pixels != image.pixels[:, :, :1]).any():
            raise InputError(f"The kernel {source} is coloured; give a grey image, one weight a pixel.")
        values = image.pixels[:, :, 0]
    return checked_kernel(values, f"The kernel {source}")


def checked_kernel(values: Any, name: str = "The kernel") -> np.ndarray:
    """A kernel [kh, kw], float64 of sum 1, from an array of numbers.

    Rows and columns of zeros are taken off in pairs, one from each side, so that the middle stays where it was. Raises
    InputError: not a matrix, NaN or infinity, a sum that is not above 0.
    """
    kernel = np.asarray(values)
    if kernel.dtype.kind not in "buif" or kernel.ndim != 2 or kernel.size == 0:
        raise InputError(f"{name} is {kernel.dtype} of shape {kernel.shape}; give a matrix of numbers, height x width.")
    kernel = kernel.astype(np.float64)
    if not np.isfinite(kernel).all():
        raise InputError(f"{name} holds NaN or infinite values; give finite weights.")
    total = kernel.sum()
    if not total > 0:
        raise InputError(f"{name} has the sum {total:g}; give weights whose sum is above 0, it is scaled to 1.")
    return np.ascontiguousarray(_trimmed(_trimmed(kernel).T).T) / total


def _trimmed(kernel: np.ndarray) -> np.ndarray:
    """Without those outer rows that are zero on both sides."""
    used = np.flatnonzero(kernel.any(axis=1))
    border = min(used[0], len(kernel) - 1 - used[-1])
    return kernel[border : len(kernel) - border]


def _read_text(source: str) -> np.ndarray:
    try:
        with open(source, encoding="utf-8") as file:
            lines = [line.replace(",", " ").replace(";", " ") for line in file]
        rows = [[float(word) for word in line.split()] for line in lines if line.strip() and not line.startswith("#")]
    except (OSError, ValueError) as error:
        raise ImageError(f"The kernel {source} is not a matrix of numbers ({error}); write one row of numbers a line.") from error
    if len({len(row) for row in rows}) != 1:
        raise ImageError(f"The kernel {source} has rows of different length, or none; write one row of numbers a line.")
    return np.array(rows)
