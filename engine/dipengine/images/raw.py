"""Pixels in a file on disk without header or compression, of which windows are read and written: images larger than memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dipengine.images.orientation import upright_view

_BAND_BYTES = 1 << 24


@dataclass(frozen=True)
class RawPixels:
    """The file `path`: [H, W, bands] of `dtype` in C order and native byte order, in the stored layout of `orientation`.

    Rows and columns below are those of the upright image. A window is mapped while it is copied, and no longer, so that a large
    file never counts as this process's memory.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    orientation: int = 1

    @classmethod
    def create(cls, path: Path, height: int, width: int, bands: int, dtype: np.dtype, orientation: int = 1) -> RawPixels:
        """A new file for an upright image of height x width, its place on the disk taken. Raises OSError where it is full."""
        shape = (width, height, bands) if orientation >= 5 else (height, width, bands)
        raw = cls(path, shape, np.dtype(dtype), orientation)
        with open(path, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, raw.nbytes)  # a full disk met through a mapping would end the process
            else:
                file.truncate(raw.nbytes)
        return raw

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def height(self) -> int:
        """Rows of the upright image."""
        return self.shape[1] if self.orientation >= 5 else self.shape[0]

    @property
    def width(self) -> int:
        """Columns of the upright image."""
        return self.shape[0] if self.orientation >= 5 else self.shape[1]

    def read(self, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """A copy of a window, [h, w, bands]."""
        return np.array(self._view("r")[rows, columns], order="C")

    def write(self, rows: slice, columns: slice, pixels: np.ndarray) -> None:
        """Put [h, w, bands] of the file's dtype in a window's place."""
        self._view("r+")[rows, columns] = pixels

    def flush(self) -> None:
        """Returns when what was written is on the disk."""
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())

    def bands_of_rows(self) -> Iterator[slice]:
        """All rows from the top, a few megabytes at a time."""
        return row_bands(self.height, self.width * self.shape[2] * self.dtype.itemsize)

    def _view(self, mode: str) -> np.ndarray:
        return upright_view(np.memmap(self.path, self.dtype, mode, shape=self.shape), self.orientation)


def row_bands(height: int, row_bytes: int) -> Iterator[slice]:
    """Rows 0 to height in order, in slices of about 16 MB."""
    rows = max(1, _BAND_BYTES // max(1, row_bytes))
    for first in range(0, height, rows):
        yield slice(first, min(height, first + rows))
