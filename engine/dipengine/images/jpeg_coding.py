"""How a JPEG file codes its picture: by which steps its coefficients were rounded, and which samples of colour it dropped.

Read from the file's header by Pillow, which decodes nothing; libvips does not tell. ITU-T T.81 (1992), JFIF 1.02.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dipengine.images.orientation import upright_view

BLOCK = 8  # samples a side of what is transformed at once
Steps = tuple[tuple[int, ...], ...]  # eight rows of eight


@dataclass(frozen=True)
class JpegCoding:
    """The coding of a picture, or of a window of one.

    steps: of each component (Y, or Y, Cb, Cr), what its coefficients were rounded to multiples of, in 8-bit levels by the orthonormal
        8 x 8 cosine transform: eight rows of eight, vertical frequency first. None for a component of which that is not known.
    sampling: of each component, the (rows, columns) of pixels that one of its samples stands for.
    orientation: EXIF orientation; blocks lie in the stored layout.
    origin: where the window begins in the stored picture, (row, column).
    certain: whether the pixels have been looked at: a file's header may speak of a picture that was changed since. Without any steps
        that says that they show none.
    """

    steps: tuple[Steps | None, ...]
    sampling: tuple[tuple[int, int], ...]
    orientation: int = 1
    origin: tuple[int, int] = (0, 0)
    certain: bool = False

    def window(self, rows: slice, columns: slice, height: int, width: int) -> JpegCoding:
        """Of a window of the upright picture of height x width."""
        turned = self.orientation >= 5
        stored = (width, height) if turned else (height, width)
        places = [np.arange(side) + first for side, first in zip(stored, self.origin)]
        first = [
            int(upright_view(np.broadcast_to(grid, stored), self.orientation)[rows, columns][[0, -1]][:, [0, -1]].min())
            for grid in (places[0][:, None], places[1][None, :])
        ]
        return replace(self, origin=(first[0], first[1]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` takes it."""
        return {
            "steps": [None if table is None else [list(row) for row in table] for table in self.steps],
            "sampling": [list(factors) for factors in self.sampling],
            "orientation": self.orientation,
            "origin": list(self.origin),
            "certain": self.certain,
        }

    @classmethod
    def from_dict(cls, about: Mapping[str, Any]) -> JpegCoding:
        """The coding that `to_dict` described."""
        return cls(
            tuple(None if table is None else tuple(tuple(row) for row in table) for table in about["steps"]),
            tuple((rows, columns) for rows, columns in about["sampling"]),
            about["orientation"],
            (about["origin"][0], about["origin"][1]),
            about["certain"],
        )


def table(steps: np.ndarray) -> Steps:
    """[8, 8] or [64] steps as `JpegCoding` keeps them."""
    return tuple(tuple(int(step) for step in row) for row in np.reshape(steps, (BLOCK, BLOCK)))


def coding_in(path: str, orientation: int) -> JpegCoding | None:
    """The coding of a JPEG file in grey or YCbCr; None of others (CMYK, RGB), and where the header does not say."""
    from PIL.JpegImagePlugin import JpegImageFile  # not Image.open, which judges sizes, too

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of EXIF and the like, which are not looked at
            with JpegImageFile(path) as opened:
                layers, tables, mode = opened.layer, opened.quantization, opened.mode
                adobe = opened.info.get("adobe_transform")
    except (OSError, SyntaxError, ValueError, LookupError, struct.error):  # libvips is more forgiving, and has the last word
        return None
    names = [layer[0] for layer in layers or ()]
    if not tables or (mode, len(names)) not in (("L", 1), ("RGB", 3)):
        return None
    if mode == "RGB" and (adobe == 0 or names == [ord(name) for name in "RGB"]):
        return None
    tallest, widest = (max(layer[place] for layer in layers) for place in (2, 1))
    if any(not layer[1] or not layer[2] or tallest % layer[2] or widest % layer[1] or layer[3] not in tables for layer in layers):
        return None
    if any(len(tables[layer[3]]) != BLOCK * BLOCK or min(tables[layer[3]]) < 1 for layer in layers):
        return None
    return JpegCoding(
        tuple(table(np.array(tables[layer[3]])) for layer in layers),
        tuple((tallest // layer[2], widest // layer[1]) for layer in layers),
        orientation,
    )
