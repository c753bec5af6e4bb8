"""Read a mask: which pixels of an image are known (white) and which are missing (black)."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dipengine.errors import ImageError
from dipengine.images.image import Image
from dipengine.images.large import decode, read_header
from dipengine.images.limits import MAX_PIXELS
from dipengine.images.raw import RawPixels
from dipengine.images.reading import read_image

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def read_mask(
    path: str | os.PathLike, shape: tuple[int, ...], *, invert: bool = False, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """H x W bool, True where a pixel is known: at least half of full scale in the mask file.

    shape: (H, W) or (H, W, C) of the upright image that the mask belongs to. invert: black is known instead.
    Full scale is the dtype's largest value for 8 and 16 bits unsigned, 1 for floats that reach no further, else the
    file's own maximum. Colours count by their luma (BT.601); other channel counts by their mean. A mask whose
    colours are all alike but whose alpha varies is its alpha (opaque is known); in every other mask with alpha,
    transparent counts as black. Missing pixels of a FITS mask are black.

    Raises ImageError: what `read_image` raises, a size that differs from the image's, no known pixel.
    """
    mask = read_image(path, max_pixels=max_pixels)
    _check(mask, shape)
    known = _white(mask, _meaning([mask])) ^ invert
    _check_some_known(bool(known.any()), mask, invert)
    return known


def read_large_mask(
    path: str | os.PathLike, shape: tuple[int, ...], folder: Path, name: str, *, invert: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> RawPixels:
    """As `read_mask`, into the file `folder`/`name`.white of one byte a pixel, 1 where it is known; the mask is decoded beside it.

    Raises OSError too, where the disk is full.
    """
    _check(read_header(path, max_pixels=max_pixels), shape)
    mask = decode(path, folder, name, max_pixels=max_pixels)
    meaning = _meaning(band for _, band in mask.bands())
    known = RawPixels.create(folder / f"{name}.white", *shape[:2], 1, np.dtype(np.uint8))
    some = False
    for rows, band in mask.bands():
        white = _white(band, meaning) ^ invert
        known.write(rows, slice(None), white[:, :, None])
        some = some or bool(white.any())
    _check_some_known(some, mask.like, invert)
    return known


def _check(mask: Image, shape: tuple[int, ...]) -> None:
    if (mask.height, mask.width) != tuple(shape[:2]):
        raise ImageError(f"The mask {mask.source} is {mask.width} x {mask.height} pixels but the image is "
                         f"{shape[1]} x {shape[0]}; give a mask of the image's size.")
    if mask.metadata.interpretation == "cmyk":
        raise ImageError(f"The mask {mask.source} is in CMYK, where white is zero ink; save it as grey or RGB.")


def _check_some_known(some: bool, mask: Image, invert: bool) -> None:
    if not some:
        raise ImageError(
            f"The mask {mask.source} leaves no known pixel; "
            + ("its known pixels must be black when it is inverted." if invert
               else "white marks the known pixels, --invert-mask turns it.")
        )


@dataclass(frozen=True)
class _Meaning:
    """What only the whole mask tells: whether it is its alpha, and full scale of its colours and its alpha."""

    alpha_alone: bool
    full: float


def _meaning(parts: Iterable[Image]) -> _Meaning:
    """parts: of one mask, from top to bottom."""
    first = None
    alike, largest, alphas = True, -np.inf, []
    for part in parts:
        first = part.pixels[:1, :1].copy() if first is None else first
        alike = alike and bool((part.pixels == first).all())
        if part.alpha is not None:
            alphas += [part.alpha.min(), part.alpha.max()]
        values = part.pixels if part.known is None else part.pixels[part.known]
        if values.size:
            largest = max(largest, float(values.max()))
        dtype, counts = part.dtype, part.in_data_units
    if dtype in (np.uint8, np.uint16) and not counts:
        full = float(np.iinfo(dtype).max)
    else:
        full = 1.0 if dtype.kind == "f" and largest <= 1.0 or largest <= 0.0 else largest
    return _Meaning(alike and bool(alphas) and min(alphas) != max(alphas), full)


def _white(mask: Image, meaning: _Meaning) -> np.ndarray:
    if meaning.alpha_alone:
        return _level(mask.alpha, meaning) >= 0.5
    weights = _LUMA if mask.channels == 3 else (1 / mask.channels,) * mask.channels
    grey = sum(weight * _level(mask.pixels[..., i], meaning) for i, weight in enumerate(weights))
    white = grey >= 0.5
    if mask.alpha is not None:
        white &= _level(mask.alpha, meaning) >= 0.5
    if mask.known is not None:
        white &= mask.known
    return white


def _level(plane: np.ndarray, meaning: _Meaning) -> np.ndarray:
    """A plane of the mask in units of full scale, float32, missing values 0."""
    values = np.nan_to_num(plane.astype(np.float64), nan=0.0)
    return (values / meaning.full).astype(np.float32)
