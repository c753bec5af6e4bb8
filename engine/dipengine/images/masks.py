"""Read a mask: which pixels of an image are known (white) and which are missing (black)."""

import os

import numpy as np

from dipengine.errors import ImageError
from dipengine.images.image import Image
from dipengine.images.limits import MAX_PIXELS
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
    if (mask.height, mask.width) != tuple(shape[:2]):
        raise ImageError(f"The mask {mask.source} is {mask.width} x {mask.height} pixels but the image is "
                         f"{shape[1]} x {shape[0]}; give a mask of the image's size.")
    if mask.metadata.interpretation == "cmyk":
        raise ImageError(f"The mask {mask.source} is in CMYK, where white is zero ink; save it as grey or RGB.")
    known = ~_white(mask) if invert else _white(mask)
    if not known.any():
        raise ImageError(
            f"The mask {mask.source} leaves no known pixel; "
            + ("its known pixels must be black when it is inverted." if invert
               else "white marks the known pixels, --invert-mask (invert=True) turns it.")
        )
    return known


def _white(mask: Image) -> np.ndarray:
    colours_alike = bool((mask.pixels == mask.pixels[:1, :1]).all())
    if mask.alpha is not None and colours_alike and mask.alpha.min() != mask.alpha.max():
        return _level(mask.alpha, mask) >= 0.5
    weights = _LUMA if mask.channels == 3 else (1 / mask.channels,) * mask.channels
    grey = sum(weight * _level(mask.pixels[..., i], mask) for i, weight in enumerate(weights))
    white = grey >= 0.5
    if mask.alpha is not None:
        white &= _level(mask.alpha, mask) >= 0.5
    if mask.known is not None:
        white &= mask.known
    return white


def _level(plane: np.ndarray, mask: Image) -> np.ndarray:
    """A plane of the mask in units of full scale, float32, missing values 0."""
    values = np.nan_to_num(plane.astype(np.float64), nan=0.0)
    if plane.dtype in (np.uint8, np.uint16) and not mask.in_data_units:
        full = float(np.iinfo(plane.dtype).max)
    else:
        known = mask.pixels[mask.known] if mask.known is not None else mask.pixels
        largest = float(known.max())
        full = 1.0 if plane.dtype.kind == "f" and largest <= 1.0 or largest <= 0.0 else largest
    return (values / full).astype(np.float32)
