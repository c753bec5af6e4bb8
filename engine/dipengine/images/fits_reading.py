"""Read FITS images (gzip-compressed files too) through astropy: integers stay integers, BLANK and NaN are missing.

The scaling follows the FITS standard 4.0, section 4.4.2.5 (BSCALE, BZERO, BLANK) and its table 11 (the BZERO
values that mean unsigned integers).
"""

import gzip
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from dipengine.errors import DependencyError, ImageError
from dipengine.images.image import FitsRecord, Image, Metadata
from dipengine.images.limits import check_size
from dipengine.images.missing import known_in


_LARGEST_PIXEL = 32  # bytes: four channels of float64
_PIECE = 1 << 20
_SIGNATURE = b"SIMPLE  ="
_GZIP = b"\x1f\x8b"


def is_fits(source: str) -> bool:
    """Whether a file is FITS, gzip-compressed or not. Raises ImageError for a gzip file that is damaged or holds else."""
    with open(source, "rb") as file:
        start = file.read(len(_SIGNATURE))
    if not start.startswith(_GZIP):
        return start == _SIGNATURE
    try:
        with gzip.open(source) as file:
            start = file.read(len(_SIGNATURE))
    except (EOFError, OSError, zlib.error):
        start = b""
    if start != _SIGNATURE:
        raise ImageError(f"{source} is a gzip file that is damaged or holds no FITS; unpack it, or give an image file.")
    return True


def load_fits() -> ModuleType:
    """The module astropy.io.fits; DependencyError where astropy is missing."""
    try:
        from astropy.io import fits
    except ImportError as error:
        raise DependencyError('FITS needs astropy; install it with pip install "dipengine[astro]".') from error
    return fits


def read_fits(source: str, *, sha256: str, max_pixels: int) -> Image:
    """The first HDU of `source` that holds an image: (H, W), or (C, H, W) with leading axes of length 1.

    A pixel is known where every channel has a value. The other HDUs are kept as bytes, to be written back.
    """
    with opened_fits(source, max_pixels=max_pixels) as (hdu, record):
        raw = np.asarray(hdu.data)
    values, missing = physical(raw, record.header)
    image = Image(pixels=channels_last(values), source=source, format="fits", sha256=sha256, metadata=Metadata(fits=record))
    return replace(image, known=known_in(image, channels_last(missing), source))


@contextmanager
def opened_fits(source: str, *, max_pixels: int) -> Iterator[tuple[Any, FitsRecord]]:
    """The first HDU that holds an image, unscaled and not yet read, and all else of the file.

    Raises ImageError for what astropy raises within.
    """
    fits = load_fits()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy warns of headers that it mends, and of what is refused below
        try:
            with fits.open(source, mode="readonly", memmap=False, do_not_scale_image_data=True) as hdus:
                yield _first_image(hdus, source, max_pixels)
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError(f"{source} does not fit into memory; cut it into parts.") from error
        except Exception as error:  # astropy raises whatever a broken header or table leads it into
            raise ImageError(f"{source} is damaged or cut short and cannot be read as FITS "
                             f"({type(error).__name__}); fetch or export it again.") from error


def _first_image(hdus, source: str, max_pixels: int) -> tuple[Any, FitsRecord]:
    for position, hdu in enumerate(hdus):
        if not hdu.is_image or not hdu.shape:
            continue
        axes = tuple(hdu.shape)
        if len(axes) < 2 or any(length != 1 for length in axes[:-3]):
            raise ImageError(f"{source} holds an array of {' x '.join(map(str, axes))} in HDU {position}; "
                             "give an image of (height, width) or (channels, height, width).")
        channels = axes[-3] if len(axes) > 2 else 1
        check_size(source, axes[-2], axes[-1], channels, max_pixels)
        header = hdu.header.copy()
        span = hdu.fileinfo()
        before, after = _around(source, span["hdrLoc"], span["datLoc"] + span["datSpan"], max_pixels)
        primary_length = 0
        if position > 0:
            primary = hdus[0].fileinfo()
            primary_length = primary["datLoc"] + primary["datSpan"]
        return hdu, FitsRecord(header, axes, before, after, primary_length)
    raise ImageError(f"{source} holds no image (tables or empty HDUs only); give a FITS file with image data.")


def _around(source: str, start: int, end: int, max_pixels: int) -> tuple[bytes, bytes]:
    """The bytes in front of `start` and from `end` on, of the unpacked file. Raises ImageError for a bomb."""
    with open(source, "rb") as file:
        packed = file.read(2) == _GZIP
    limit = max_pixels * _LARGEST_PIXEL  # a gzip file of a few kilobytes can unpack to gigabytes
    with gzip.open(source) if packed else open(source, "rb") as file:
        before = _read(file, min(start, limit))
        file.seek(end)
        after = _read(file, limit + 1)
    if len(before) < start or len(after) > limit:
        raise ImageError(f"{source} holds more than {limit:,} bytes besides its image; "
                         "raise --max-pixels (max_pixels) if you trust the file.")
    return before, after


def _read(file: BinaryIO, most: int) -> bytes:
    """What is left of a file, `most` bytes of it at most, which are not taken before they are there."""
    pieces = []
    while most > 0 and (piece := file.read(min(most, _PIECE))):
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces)


def physical(raw: np.ndarray, header) -> tuple[np.ndarray, np.ndarray]:
    """Values in physical units and native byte order, and where they are missing; same shape as `raw`."""
    raw = raw.astype(raw.dtype.newbyteorder("="), copy=False)
    scale, zero = float(header.get("BSCALE", 1)), float(header.get("BZERO", 0))
    if raw.dtype.kind == "f":
        if (scale, zero) != (1.0, 0.0):
            raw = (raw.astype(np.float64) * scale + zero).astype(raw.dtype)
        return raw, np.isnan(raw)
    blank = header.get("BLANK")
    missing = np.zeros(raw.shape, bool) if blank is None else raw == blank
    if (scale, zero) == (1.0, 0.0):
        return raw, missing
    bits = 8 * raw.itemsize
    if scale == 1.0 and zero == (-128.0 if bits == 8 else 2.0 ** (bits - 1)):
        flipped = raw.view(f"u{raw.itemsize}") ^ np.array(1 << (bits - 1), f"u{raw.itemsize}")
        return (flipped.view(np.int8) if bits == 8 else flipped), missing
    # Other scalings stand for real numbers: as many bits as hold the stored integers exactly.
    values = (raw * scale + zero).astype(np.float32 if bits <= 16 else np.float64)
    values[missing] = np.nan
    return values, missing


def channels_last(array: np.ndarray) -> np.ndarray:
    """H x W x C of (..., C, H, W) or (H, W), C-contiguous."""
    planes = array.reshape((-1,) + array.shape[-2:])
    return np.ascontiguousarray(np.moveaxis(planes, 0, -1))
