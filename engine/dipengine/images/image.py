"""An image in memory: its pixels in their own units, and what is needed to write it back as it came."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dipengine.images.jpeg_coding import JpegCoding
from dipengine.images.namespaces import dtype_name


def opaque(dtype: Any) -> int:
    """The value of an opaque pixel in an alpha channel of that dtype: the largest integer, or 1 for floats."""
    name = dtype_name(dtype)
    return int(np.iinfo(name).max) if name.startswith(("int", "uint")) else 1


@dataclass(frozen=True)
class FitsRecord:
    """What a FITS file holds besides the pixels that were read.

    header: `astropy.io.fits.Header` of the HDU that was read.
    axes: length of the array's axes as stored, slowest first: (H, W), (C, H, W) or (1, ..., C, H, W).
    before, after: bytes of the HDUs in front of it and behind it, as they lie in the file.
    primary_length: bytes of `before` that are the primary HDU (0 where the image itself is the primary HDU).
    """

    header: Any
    axes: tuple[int, ...]
    before: bytes = b""
    after: bytes = b""
    primary_length: int = 0


@dataclass(frozen=True)
class Metadata:
    """What travels beside the pixels from the file that was read to the file that is written.

    interpretation: libvips's name of the colour space ("srgb", "b-w", "cmyk", ...), "" where nothing names one.
    orientation: EXIF orientation 1..8 of the stored pixels; `Image.pixels` are upright whatever it says.
    resolution: pixels per millimetre of the stored columns and rows, None where unknown.
    fields: libvips's metadata (ICC, EXIF, XMP and IPTC blobs, EXIF entries, comments) by their libvips names.
    fits: the rest of a FITS file, None for the others.
    jpeg: the coding of a JPEG file, None for the others and where it is not known.
    """

    interpretation: str = ""
    orientation: int = 1
    resolution: tuple[float, float] | None = None
    fields: Mapping[str, bytes | str | int | float] = field(default_factory=dict)
    fits: FitsRecord | None = None
    jpeg: JpegCoding | None = None

    @property
    def icc_profile(self) -> bytes | None:
        """The embedded ICC profile, byte for byte, or None."""
        return self.fields.get("icc-profile-data")


@dataclass(frozen=True)
class Image:
    """An image as it is stored, presented upright.

    pixels: H x W x C, the colour channels alone, in the file's own dtype and units; of an array that stays where it is, its
        library's on its device (`arrays.from_array`), with alpha and known beside it. Missing pixels keep what
        is there (NaN, the BLANK value of FITS, 0 under the mask of a masked array of integers).
    alpha: H x W in the pixels' dtype, or None.
    known: H x W bool, False where a pixel is missing; None where every pixel is known.
    source: the path as it was given, "" for an array.
    format: "png", "jpeg", "webp", "tiff", "gif", "heif", "fits" or "array".
    sha256: hexadecimal digest of the file's bytes; of an array, of its values in C order ("" for one that stays on its device:
        `arrays.digest` brings it to the host).
    """

    pixels: Any
    alpha: Any = None
    known: Any = None
    source: str = ""
    format: str = "array"
    sha256: str = ""
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def height(self) -> int:
        """Rows of the upright image."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Columns of the upright image."""
        return self.pixels.shape[1]

    @property
    def channels(self) -> int:
        """Colour channels, alpha not counted."""
        return self.pixels.shape[2]

    @property
    def dtype(self) -> Any:
        """Dtype of the pixels."""
        return self.pixels.dtype

    @property
    def dtype_name(self) -> str:
        """NumPy's name of it."""
        return dtype_name(self.pixels.dtype)

    @property
    def in_data_units(self) -> bool:
        """Whether the values are counts or fluxes, mapped by their own range whatever their dtype (FITS)."""
        return self.format == "fits"
