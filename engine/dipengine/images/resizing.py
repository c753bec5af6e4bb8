"""Enlarging what a fit does not touch: the transparency of an image whose colours are super-resolved."""

import numpy as np

from dipengine.images.vips import load_pyvips


def enlarge(plane: np.ndarray, factor: int) -> np.ndarray:
    """`plane` H x W, any dtype that libvips holds, -> (H*factor) x (W*factor), bicubic (libvips), same dtype."""
    picture = load_pyvips().Image.new_from_array(np.ascontiguousarray(plane))
    return picture.resize(factor, kernel="cubic").numpy().astype(plane.dtype, copy=False).reshape(
        plane.shape[0] * factor, plane.shape[1] * factor
    )
