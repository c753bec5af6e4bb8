"""Write FITS through astropy: the pixels under the header that they came with, between the HDUs that lay around."""

import gzip
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from dipengine._version import __version__
from dipengine.images.fits_reading import load_fits
from dipengine.images.image import FitsRecord, Image
from dipengine.images.raw import RawPixels
from dipengine.images.wcs import scale_wcs

_BLOCK = 2880  # bytes (FITS standard 4.0, section 3.1)

# The pixels are new: what was computed from the old ones, or says how they were packed, must not stay.
_STALE_KEYS = ("BSCALE", "BZERO", "BLANK", "DATAMIN", "DATAMAX", "CHECKSUM", "DATASUM")


def write_fits(path: Path, pixels: np.ndarray, like: Image, *, scale: float = 1, packed: bool = False) -> None:
    """Write H x W x C pixels as (H, W) or (C, H, W), with as many axes as the file that they came from.

    Header and WCS (scaled) of `like` are kept, a HISTORY card is added. At scale 1 all other HDUs are written back
    byte for byte. At other scales only the primary HDU is: planes and catalogues in the old pixel coordinates would
    not fit any more. A compressed image is written uncompressed; `packed` compresses the whole file by gzip. Raises
    OSError where the disk refuses.
    """
    fits = load_fits()
    record = like.metadata.fits
    planes = np.moveaxis(pixels, -1, 0)
    data = np.ascontiguousarray(planes.reshape(_axes(record, planes.shape)))
    header = _header(fits, record, scale)
    before, after = _around(record, scale)
    with _open(path, packed) as file:
        file.write(before)
        file.write(_image_hdu(fits, data, header, primary=not before))
        file.write(after)


def write_fits_from(raw: RawPixels, path: Path, like: Image, *, scale: float = 1, packed: bool = False) -> None:
    """As `write_fits` (the same bytes), from a file of raw pixels, of which a few rows are in memory at a time."""
    fits = load_fits()
    record = like.metadata.fits
    header = _header(fits, record, scale)
    before, after = _around(record, scale)
    axes = _axes(record, (raw.shape[2], raw.height, raw.width))
    with _open(path, packed) as file:
        file.write(before)
        file.write(_hdu_header(fits, raw.dtype, axes, header, primary=not before))
        for channel in range(raw.shape[2]):
            for rows in raw.bands_of_rows():
                file.write(_stored(raw.read(rows)[:, :, channel]))
        file.write(bytes(-raw.nbytes % _BLOCK))
        file.write(after)


@contextmanager
def _open(path: Path, packed: bool) -> Iterator[Any]:
    with warnings.catch_warnings(), open(path, "wb") as plain:
        warnings.simplefilter("ignore")  # cards that astropy mends
        # No name and no time inside: the same image gives the same bytes.
        with gzip.GzipFile("", "wb", 6, plain, mtime=0) if packed else nullcontext(plain) as file:
            yield file


def _around(record: FitsRecord | None, scale: float) -> tuple[bytes, bytes]:
    """The other HDUs that are written in front and behind."""
    if record is None:
        return b"", b""
    return (record.before, record.after) if scale == 1 else (record.before[: record.primary_length], b"")


def _hdu_header(fits, dtype: np.dtype, axes: tuple[int, ...], header, *, primary: bool) -> bytes:
    """The header that `_image_hdu` writes for an array of that kind, made from one of a single pixel."""
    small = bytes(_image_hdu(fits, np.zeros((1,) * len(axes), dtype), header, primary=primary))
    written = fits.Header.fromstring(small[:-_BLOCK].decode("ascii"))
    for place, length in enumerate(reversed(axes), 1):
        written[f"NAXIS{place}"] = length
    return written.tostring().encode("ascii")


def _stored(values: np.ndarray) -> bytes:
    """Samples as FITS stores them: big-endian, and integers of the other signedness less half their range (its table 11)."""
    bits = 8 * values.itemsize
    if values.dtype.kind == ("i" if bits == 8 else "u"):
        values = values.view(f"u{values.itemsize}") ^ np.array(1 << (bits - 1), f"u{values.itemsize}")
    return values.astype(values.dtype.newbyteorder(">")).tobytes()


def _image_hdu(fits, data: np.ndarray, header, *, primary: bool) -> memoryview:
    """The bytes of one HDU; what is not primary is made behind an empty primary HDU, which is one block long."""
    stream = io.BytesIO()
    hdus = [fits.PrimaryHDU(data, header)] if primary else [fits.PrimaryHDU(), fits.ImageHDU(data, header)]
    fits.HDUList(hdus).writeto(stream, output_verify="silentfix+ignore")
    return stream.getbuffer()[0 if primary else _BLOCK :]


def _axes(record: FitsRecord | None, planes: tuple[int, int, int]) -> tuple[int, ...]:
    channels, height, width = planes
    if record is None or (channels > 1 and len(record.axes) == 2):
        return (height, width) if channels == 1 else planes
    leading = len(record.axes) - 3
    return (height, width) if leading < 0 else (1,) * leading + planes


def _header(fits, record: FitsRecord | None, scale: float):
    header = fits.Header() if record is None else record.header.copy()
    for key in _STALE_KEYS:
        header.remove(key, ignore_missing=True, remove_all=True)
    if scale != 1:
        scale_wcs(header, scale)
    header.add_history(f"restored by dipengine {__version__}")
    return header
