"""Which file formats are written, and what each can hold."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dipengine.errors import FormatError, OutputError

_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
_FITS = (".fits", ".fit", ".fts")


@dataclass(frozen=True)
class FileFormat:
    """A format that is written: its suffixes, and the images that it holds.

    channels: allowed numbers of colour channels, None for any; cmyk: whether four channels of ink are allowed too.
    limits: what it holds, in words, with the formats that hold more.
    """

    name: str
    suffixes: tuple[str, ...]
    dtypes: tuple[str, ...]
    channels: tuple[int, ...] | None
    cmyk: bool
    alpha: bool
    largest_side: int | None
    limits: str


FORMATS = (
    FileFormat("png", (".png",), ("uint8", "uint16"), (1, 3), False, True, None,
               "PNG holds 8 or 16 bits unsigned, grey or RGB, with or without alpha: write TIFF or FITS"),
    FileFormat("jpeg", (".jpg", ".jpeg", ".jpe", ".jfif"), ("uint8",), (1, 3), True, False, 65535,
               "JPEG holds 8 bits, grey, RGB or CMYK, no alpha, sides up to 65535: write PNG or TIFF"),
    FileFormat("webp", (".webp",), ("uint8",), (1, 3), False, True, 16383,
               "WebP holds 8 bits, grey or RGB, with or without alpha, sides up to 16383: write PNG or TIFF"),
    FileFormat("tiff", (".tif", ".tiff"), _INTEGERS + ("float32", "float64"), None, True, True, None,
               "TIFF holds integers up to 32 bits and floats of 32 or 64: write FITS"),
    FileFormat("fits", _FITS + tuple(f"{ending}.gz" for ending in _FITS), _INTEGERS + ("uint64", "int64", "float32", "float64"), None, True,
               False, None, "FITS holds integers and floats, no alpha: write TIFF"),
)


def format_for(path: str | os.PathLike) -> FileFormat:
    """The format that a path's extension names. Raises OutputError where none does."""
    name = Path(path).name.lower()
    for file_format in FORMATS:
        if name.endswith(file_format.suffixes):
            return file_format
    suffix = Path(path).suffix
    known = ", ".join(file_format.suffixes[0] for file_format in FORMATS)
    what = f"the extension {suffix!r} names no format" if suffix else "it has no extension"
    raise OutputError(f"{path} cannot be written because {what}; end the name in one of {known}.")


def check_holds(path: str | os.PathLike, dtype: np.dtype, shape: tuple[int, int, int], *, alpha: bool, cmyk: bool
                ) -> FileFormat:
    """The format of `path`, after a check that it holds H x W x C pixels of that kind. Raises OutputError."""
    file_format = format_for(path)
    height, width, channels = shape
    name = np.dtype(dtype).name
    allowed = file_format.channels is None or channels in file_format.channels and not cmyk
    problem = ""
    if name not in file_format.dtypes:
        problem = f"its values are {name}"
    elif not (allowed or (cmyk and file_format.cmyk and channels == 4)):
        problem = f"it has {channels} colour channels" + (" (CMYK)" if cmyk else "")
    elif alpha and not file_format.alpha:
        problem = "it has an alpha channel"
    elif file_format.largest_side is not None and max(height, width) > file_format.largest_side:
        problem = f"it is {width} x {height} pixels"
    if problem:
        raise FormatError(f"The image cannot be written as {path} because {problem}; {file_format.limits}.")
    return file_format
