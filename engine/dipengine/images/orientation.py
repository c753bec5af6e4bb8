"""EXIF orientation: from the stored pixel layout to the upright image and back, without loss.

Orientation n says how a viewer turns the stored rows and columns (EXIF 2.32, tag 0x0112): 1 as it is, 2 mirrored
left to right, 3 turned by 180 degrees, 4 mirrored top to bottom, 5 transposed, 6 turned clockwise by 90 degrees,
7 transposed across the other diagonal, 8 turned counter-clockwise by 90 degrees.
"""

import numpy as np

_INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """H x W [x C] upright pixels of a stored layout; a C-contiguous array (the same one where nothing turns)."""
    return np.ascontiguousarray(_turn(stored, orientation))


def as_stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The stored layout of upright pixels: the inverse of `upright`."""
    return np.ascontiguousarray(_turn(pixels, _INVERSE.get(orientation, 1)))


def upright_view(stored: np.ndarray, orientation: int) -> np.ndarray:
    """As `upright`, but always a view: what is written to it is written to the stored layout."""
    return _turn(stored, orientation)


def _turn(array: np.ndarray, orientation: int) -> np.ndarray:
    match orientation:
        case 2:
            return array[:, ::-1]
        case 3:
            return array[::-1, ::-1]
        case 4:
            return array[::-1]
        case 5:
            return array.swapaxes(0, 1)
        case 6:
            return np.rot90(array, -1)
        case 7:
            return np.rot90(array, 2).swapaxes(0, 1)
        case 8:
            return np.rot90(array, 1)
        case _:
            return array
