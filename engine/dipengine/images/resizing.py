"""Enlarging what a fit does not touch: the transparency of an image whose colours are super-resolved."""

from pathlib import Path

import numpy as np

from dipengine.images.raw import RawPixels
from dipengine.images.vips import load_pyvips, reason, vips_format


def enlarge(plane: np.ndarray, factor: int) -> np.ndarray:
    """`plane` H x W, any dtype that libvips holds, -> (H*factor) x (W*factor), bicubic (libvips), same dtype."""
    picture = load_pyvips().Image.new_from_array(np.ascontiguousarray(plane))
    return picture.resize(factor, kernel="cubic").numpy().astype(plane.dtype, copy=False).reshape(
        plane.shape[0] * factor, plane.shape[1] * factor
    )


def enlarge_from(raw: RawPixels, factor: int, path: Path) -> RawPixels:
    """`enlarge` for the last band of a file of raw pixels, into the file `path` (one band, the same layout). Raises OSError."""
    pyvips = load_pyvips()
    height, width, bands = raw.shape
    try:
        # Else libvips may take what it read from another file of that name.
        picture = pyvips.Image.rawload(str(raw.path), width, height, bands, format=vips_format(raw.dtype), revalidate=True)
        picture.extract_band(bands - 1).resize(factor, kernel="cubic").rawsave(str(path))
    except pyvips.Error as error:
        raise OSError(reason(error)) from error
    return RawPixels(path, (height * factor, width * factor, 1), raw.dtype, raw.orientation)
