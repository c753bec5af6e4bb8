"""Read a blur kernel: an image, a .npy array or a matrix as text."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from dipengine.errors import ImageError, InputError
from dipengine.images.image import opaque
from dipengine.images.limits import MAX_PIXELS
from dipengine.images.pages import file_and_page
from dipengine.images.reading import check_readable, read_image

TEXT_ENDINGS = (".txt", ".csv", ".tsv", ".dat")


def read_kernel(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A kernel [kh, kw], float64 of sum 1, from a file.

    An image (grey, or of equal colours, opaque), a `.npy` array, or text (`.txt`, `.csv`, `.tsv`, `.dat`): one row a line,
    numbers separated by semicolons, by commas or by spaces, comments after #. Raises ImageError (a file that cannot be read)
    and InputError (values that are no kernel).
    """
    source = os.fspath(path)
    file = file_and_page(source)[0]
    check_readable(Path(file))
    ending = Path(file).suffix.lower()
    if ending == ".npy":
        try:
            values = np.load(source, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ImageError(f"The kernel {source} is not a readable .npy array ({error}); save it with numpy.save.") from error
    elif ending in TEXT_ENDINGS:
        values = _read_text(source)
    else:
        try:
            image = read_image(source, max_pixels=max_pixels)
        except ImageError as error:
            raise ImageError(
                f"The kernel is no readable image ({str(error).rstrip('.')}); give a grey image, a .npy array, or a "
                f"matrix as .txt or .csv."
            ) from error
        if image.known is not None:
            raise InputError(f"The kernel {source} holds NaN or BLANK values; give finite weights.")
        if (image.pixels != image.pixels[:, :, :1]).any():
            raise InputError(f"The kernel {source} is coloured; give a grey image, one weight a pixel.")
        if image.alpha is not None and (image.alpha != opaque(image.alpha.dtype)).any():
            raise InputError(
                f"The kernel {source} is transparent in places; give an opaque grey image, black where the weight is 0."
            )
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
    largest = float(abs(kernel).max()) or 1.0
    kernel /= largest  # so that no sum overflows
    total = kernel.sum()
    if not total > 0:
        raise InputError(f"{name} has the sum {total * largest:g}; give weights whose sum is above 0, it is scaled to 1.")
    return np.ascontiguousarray(_trimmed(_trimmed(kernel).T).T) / total


def _trimmed(kernel: np.ndarray) -> np.ndarray:
    """Without those outer rows that are zero on both sides."""
    used = np.flatnonzero(kernel.any(axis=1))
    border = min(used[0], len(kernel) - 1 - used[-1])
    return kernel[border : len(kernel) - border]


def _read_text(source: str) -> np.ndarray:
    try:
        with open(source, encoding="utf-8-sig") as file:  # spreadsheets begin UTF-8 with a mark
            lines = [line.partition("#")[0].strip() for line in file]
        rows = [[float(word) for word in _words(line)] for line in lines if line]
    except (OSError, ValueError) as error:
        raise ImageError(f"The kernel {source} is not a matrix of numbers ({error}); write one row of numbers a line.") from error
    if len({len(row) for row in rows}) != 1:
        raise ImageError(f"The kernel {source} has rows of different length, or none; write one row of numbers a line.")
    return np.array(rows)


def _words(line: str) -> list[str]:
    """A row's numbers. One separator a line, so that "1,5 2,5" and "1,5;2,5" are refused and not taken for four numbers."""
    for separator in (";", ","):
        if separator in line:
            return line.rstrip(separator).split(separator)
    return line.split()
