"""Images larger than memory: decoded once, from top to bottom, into a file of raw pixels, and read by windows from there.

What libvips itself holds in memory as a whole it holds here too: interlaced PNG, WebP, HEIF; so does TIFF of 64 bits a sample.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dipengine.errors import ImageError
from dipengine.images.deep_tiff_reading import has_deep_samples, read_deep_tiff
from dipengine.images.fits_reading import channels_last, is_fits, load_fits, opened_fits, physical
from dipengine.images.image import Image, Metadata
from dipengine.images.jpeg_coding import JpegCoding
from dipengine.images.limits import MAX_PIXELS
from dipengine.images.missing import check_alpha, check_some_known, known_of
from dipengine.images.pages import check_pages, file_and_page, page_name
from dipengine.images.raster_reading import has_alpha, metadata_of, open_raster, undecodable
from dipengine.images.raw import RawPixels, row_bands
from dipengine.images.reading import check_readable, digest_of
from dipengine.images.vips import dtype_of, load_pyvips

_FITS_DTYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}  # of BITPIX
_PIECE = 1 << 20


@dataclass(frozen=True)
class LargeImage:
    """An image in files of raw pixels.

    like: everything but its values: those of its pixels, alpha and known are zeros that take no memory.
    stored: the colour channels, the alpha channel last where there is one. known: one byte a pixel, 0 where it is missing.
    """

    like: Image
    stored: RawPixels
    known: RawPixels | None = None

    def window(self, rows: slice = slice(None), columns: slice = slice(None)) -> Image:
        """The image in a window, in memory; its metadata are the whole image's, but for where it lies in the coding of a JPEG."""
        pixels, alpha = self.stored.read(rows, columns), None
        if self.like.alpha is not None:
            pixels, alpha = np.ascontiguousarray(pixels[..., :-1]), np.ascontiguousarray(pixels[..., -1])
        known = None if self.known is None else self.known.read(rows, columns)[:, :, 0].astype(bool)
        metadata, (height, width) = self.like.metadata, self.like.pixels.shape[:2]
        if metadata.jpeg is not None:
            metadata = replace(metadata, jpeg=metadata.jpeg.window(rows, columns, height, width))
        return replace(self.like, pixels=pixels, alpha=alpha, known=known, metadata=metadata)

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` needs to find the image again in its folder; JSON-able."""
        like = self.like
        return {
            "source": like.source, "format": like.format, "sha256": like.sha256, "dtype": like.dtype.name,
            "shape": list(like.pixels.shape), "alpha": like.alpha is not None, "orientation": self.stored.orientation,
            "stored": self.stored.path.name, "known": None if self.known is None else self.known.path.name,
            "jpeg": None if like.metadata.jpeg is None else like.metadata.jpeg.to_dict(),
        }

    @classmethod
    def from_dict(cls, about: Mapping[str, Any], folder: Path) -> LargeImage:
        """The image that `to_dict` described, of its metadata only the coding of a JPEG."""
        height, width, channels = about["shape"]
        nothing = np.zeros((), about["dtype"])
        turned = about["orientation"] >= 5
        stored = (width, height) if turned else (height, width)
        known = None
        if about["known"] is not None:
            known = RawPixels(folder / about["known"], (height, width, 1), np.dtype(np.uint8))
        like = Image(
            pixels=np.broadcast_to(nothing, about["shape"]),
            alpha=np.broadcast_to(nothing, about["shape"][:2]) if about["alpha"] else None,
            known=None if known is None else np.broadcast_to(np.False_, about["shape"][:2]),
            source=about["source"], format=about["format"], sha256=about["sha256"],
            metadata=Metadata(jpeg=None if about["jpeg"] is None else JpegCoding.from_dict(about["jpeg"])),
        )
        bands = (*stored, channels + about["alpha"])
        return cls(like, RawPixels(folder / about["stored"], bands, like.dtype, about["orientation"]), known)

    def bands(self) -> Iterator[tuple[slice, Image]]:
        """The image from top to bottom, some rows of full width at a time."""
        for rows in self.stored.bands_of_rows():
            yield rows, self.window(rows)


def read_header(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Image:
    """An image's size, kind and metadata, its values zeros that take no memory and its `sha256` left out.

    Whether pixels are missing is not known yet. Raises what `read_image` raises for what a header shows.
    """
    source, page = file_and_page(path)
    check_readable(Path(source))
    if is_fits(source):
        check_pages(source, 1, page)
        with opened_fits(source, max_pixels=max_pixels) as (hdu, record):
            return _fits_like(source, hdu, record)
    pyvips = load_pyvips()
    try:
        opened, file_format = open_raster(source, page, max_pixels=max_pixels)
    except pyvips.Error as error:
        if not has_deep_samples(source, page):
            raise undecodable(source, error) from error
        image = read_deep_tiff(source, page, sha256="", max_pixels=max_pixels)
        return replace(image, pixels=_zeros(image.pixels), alpha=None if image.alpha is None else _zeros(image.alpha))
    return _raster_like(source if page is None else page_name(source, page), opened, file_format)


def decode(path: str | os.PathLike, folder: Path, name: str, *, max_pixels: int = MAX_PIXELS) -> LargeImage:
    """Decode an image into `folder`/`name`.raw and, where pixels are missing, `name`.known.

    Values are checked as `read_image` checks them. Raises what it raises, and OSError where the disk is full.
    """
    source, page = file_and_page(path)
    check_readable(Path(source))
    digest, target = digest_of(path), folder / f"{name}.raw"
    if is_fits(source):
        check_pages(source, 1, page)
        large = _decode_fits(source, target, max_pixels)
    else:
        large = _decode_raster(source, page, target, max_pixels)
    return replace(large, like=replace(large.like, sha256=digest))


def dump(image: Image, folder: Path, name: str) -> LargeImage:
    """An image in memory as one in files, upright. Raises OSError where the disk is full."""
    alpha = image.alpha is not None
    like = replace(image, pixels=_zeros(image.pixels), alpha=_zeros(image.alpha) if alpha else None)
    whole = np.concatenate([image.pixels, image.alpha[:, :, None]], axis=2) if alpha else image.pixels
    stored = _dumped(whole, folder / f"{name}.raw", image.metadata.orientation)
    known = None
    if image.known is not None:
        known = _dumped(image.known.astype(np.uint8)[:, :, None], folder / f"{name}.known", 1)
    return LargeImage(like, stored, known)


def _dumped(pixels: np.ndarray, path: Path, orientation: int) -> RawPixels:
    raw = RawPixels.create(path, *pixels.shape, pixels.dtype, orientation)
    raw.write(slice(None), slice(None), pixels)
    return raw


def _decode_raster(source: str, page: int | None, target: Path, max_pixels: int) -> LargeImage:
    pyvips = load_pyvips()
    try:
        opened, file_format = open_raster(source, page, max_pixels=max_pixels)
        like = _raster_like(source if page is None else page_name(source, page), opened, file_format)
        opened.rawsave(str(target))
    except pyvips.Error as error:
        if has_deep_samples(source, page):
            return dump(read_deep_tiff(source, page, sha256="", max_pixels=max_pixels), target.parent, target.stem)
        raise undecodable(source, error) from error
    large = LargeImage(like, RawPixels(target, (opened.height, opened.width, opened.bands), like.dtype, like.metadata.orientation))
    return large if like.dtype.kind != "f" else _with_known(large, like.source, target.with_suffix(".known"))


def _with_known(large: LargeImage, source: str, path: Path) -> LargeImage:
    """A raster of floats, and where it has values: `path` is there only if it lacks some."""
    known = _Known(path, large.like.height, large.like.width)
    for rows, band in large.bands():
        check_alpha(band.alpha, source)
        known.put(rows, known_of(band.pixels, None, source))
    return known.beside(large, source)


def _raster_like(source: str, opened: Any, file_format: str) -> Image:
    metadata = metadata_of(opened, file_and_page(source)[0] if file_format == "jpeg" else None)
    height, width = opened.height, opened.width
    if metadata.orientation >= 5:
        height, width = width, height
    nothing = np.zeros((), dtype_of(opened))
    alpha = has_alpha(opened)
    return Image(
        pixels=np.broadcast_to(nothing, (height, width, opened.bands - alpha)),
        alpha=np.broadcast_to(nothing, (height, width)) if alpha else None,
        source=source, format=file_format, metadata=metadata,
    )


def _fits_like(source: str, hdu: Any, record: Any) -> Image:
    dtype = physical(np.empty((0, 0), _FITS_DTYPES[hdu.header["BITPIX"]]), record.header)[0].dtype
    channels = record.axes[-3] if len(record.axes) > 2 else 1
    pixels = np.broadcast_to(np.zeros((), dtype), (*record.axes[-2:], channels))
    return Image(pixels=pixels, source=source, format="fits", metadata=Metadata(fits=record))


def _decode_fits(source: str, target: Path, max_pixels: int) -> LargeImage:
    """Row by row from the file itself; a packed one is unpacked beside the target first."""
    with ExitStack() as stack:
        plain = stack.enter_context(_unpacked(source, target.with_suffix(".fits"), max_pixels))
        hdu, record = stack.enter_context(opened_fits(plain, max_pixels=max_pixels))
        like = _fits_like(source, hdu, record)
        stored = RawPixels.create(target, like.height, like.width, like.channels, like.dtype)
        known = _Known(target.with_suffix(".known"), like.height, like.width)
        for rows in row_bands(like.height, like.width * like.channels * like.dtype.itemsize):
            values, missing = physical(_fits_rows(hdu, plain, record.axes, rows), record.header)
            pixels = channels_last(values)
            known.put(rows, known_of(pixels, channels_last(missing), source))
            stored.write(rows, slice(None), pixels)
    return known.beside(LargeImage(like, stored), source)


class _Known:
    """Which pixels have a value, told from top to bottom; in a file from the first one on that has none."""

    def __init__(self, path: Path, height: int, width: int) -> None:
        self._path, self._height, self._width = path, height, width
        self._raw: RawPixels | None = None
        self._some = False

    def put(self, rows: slice, known: np.ndarray) -> None:
        """known: bool [h, W] of these rows."""
        self._some = self._some or bool(known.any())
        if self._raw is None and not known.all():
            self._raw = RawPixels.create(self._path, self._height, self._width, 1, np.dtype(np.uint8))
            for above in row_bands(rows.start, self._width):
                self._raw.write(above, slice(None), np.ones((), np.uint8))
        if self._raw is not None:
            self._raw.write(rows, slice(None), known[:, :, None])

    def beside(self, large: LargeImage, source: str) -> LargeImage:
        """The image with what is known of it. Raises ImageError where no pixel has a value."""
        check_some_known(self._some, source)
        if self._raw is None:
            return large
        nothing = np.broadcast_to(np.False_, (self._height, self._width))
        return replace(large, like=replace(large.like, known=nothing), known=self._raw)


def _fits_rows(hdu: Any, plain: str, axes: tuple[int, ...], rows: slice) -> np.ndarray:
    """Rows of all channels as stored; mapped for as long as they are copied."""
    if isinstance(hdu, load_fits().CompImageHDU):
        return np.asarray(hdu.section[(slice(None),) * (len(axes) - 2) + (rows,)])
    dtype = _FITS_DTYPES[hdu.header["BITPIX"]]
    mapped = np.memmap(plain, dtype, "r", offset=hdu.fileinfo()["datLoc"], shape=axes)
    return np.array(mapped[..., rows, :])


@contextmanager
def _unpacked(source: str, beside: Path, max_pixels: int) -> Iterator[str]:
    """The file itself, or a gzip-compressed one unpacked for the time being. Raises ImageError for a bomb."""
    with open(source, "rb") as file:
        if file.read(2) != b"\x1f\x8b":
            yield source
            return
    with opened_fits(source, max_pixels=max_pixels):  # its size is checked before it is unpacked
        pass
    try:
        with gzip.open(source) as packed, open(beside, "wb") as plain:
            shutil.copyfileobj(packed, plain, _PIECE)
        yield str(beside)
    finally:
        beside.unlink(missing_ok=True)


def _zeros(array: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.zeros((), array.dtype), array.shape)
