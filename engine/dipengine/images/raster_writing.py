"""Write PNG, JPEG, WebP and TIFF through libvips, with the metadata that the image came with.

PNG: zlib level 6, adaptive filters, 8 or 16 bits. JPEG: quality 95, 4:4:4 (no chroma subsampling). WebP: lossless,
colours under transparent pixels kept; it knows no grey, so that grey comes back as RGB. TIFF: deflate, lossless,
integers with the horizontal predictor (few readers know the float one), BigTIFF from 2 GB on.
libvips carries no EXIF into or out of TIFF but for orientation and resolution, and no gAMA or cHRM chunk of PNG.
"""

from pathlib import Path

import numpy as np

from dipengine.images.formats import FileFormat
from dipengine.images.image import Image
from dipengine.images.orientation import as_stored
from dipengine.images.raw import RawPixels
from dipengine.images.vips import load_pyvips, reason, vips_format

_BIGTIFF_BYTES = 2_000_000_000


def write_raster(path: Path, file_format: FileFormat, pixels: np.ndarray, like: Image, *,
                 alpha: np.ndarray | None = None, scale: float = 1) -> None:
    """Encode H x W x C upright pixels (and H x W alpha) into the file `path`, in the stored layout of `like`.

    The resolution is multiplied by `scale`: the picture keeps its size on paper. Raises OSError
    where libvips cannot write.
    """
    pyvips = load_pyvips()
    whole = pixels if alpha is None else np.concatenate([pixels, alpha[..., None]], axis=2)
    stored = as_stored(whole, like.metadata.orientation)
    height, width, bands = stored.shape
    try:
        picture = pyvips.Image.new_from_memory(stored, width, height, bands, vips_format(stored.dtype))
        _encode(picture, path, file_format, pixels.dtype, pixels.shape[2], like, scale)
    except pyvips.Error as error:
        raise OSError(reason(error)) from error


def write_raster_from(raw: RawPixels, path: Path, file_format: FileFormat, like: Image, *, alpha: bool, scale: float = 1
                      ) -> None:
    """As `write_raster`, from a file of raw pixels in the stored layout, a part of which is in memory at a time."""
    pyvips = load_pyvips()
    height, width, bands = raw.shape
    try:
        # Else libvips may take what it read from another file of that name.
        picture = pyvips.Image.rawload(str(raw.path), width, height, bands, format=vips_format(raw.dtype), revalidate=True)
        _encode(picture, path, file_format, raw.dtype, bands - alpha, like, scale)
    except pyvips.Error as error:
        raise OSError(reason(error)) from error


def _encode(picture, path: Path, file_format: FileFormat, dtype: np.dtype, channels: int, like: Image, scale: float) -> None:
    pyvips = load_pyvips()
    picture = picture.copy(interpretation=_interpretation(dtype, channels, like), **_resolution(like, scale))
    _set_fields(pyvips, picture, file_format, channels, like)
    bytes_held = picture.height * picture.width * picture.bands * dtype.itemsize
    match file_format.name:
        case "png":
            picture.pngsave(str(path), compression=6, filter="all")
        case "jpeg":
            picture.jpegsave(str(path), Q=95, subsample_mode="off", optimize_coding=True)
        case "webp":
            picture.webpsave(str(path), lossless=True, exact=True)
        case "tiff":
            picture.tiffsave(str(path), compression="deflate", bigtiff=bytes_held > _BIGTIFF_BYTES,
                             predictor="none" if dtype.kind == "f" else "horizontal")


def _interpretation(dtype: np.dtype, channels: int, like: Image) -> str:
    """The colour space to store: the image's own where the pixels still have its kind, else by dtype and channels."""
    if like.metadata.interpretation and dtype == like.dtype and channels == like.channels:
        return like.metadata.interpretation
    wide = dtype == np.uint16
    match channels:
        case 1:
            return "grey16" if wide else "b-w"
        case 3:
            return "rgb16" if wide else "scrgb" if dtype.kind == "f" else "srgb"
        case _:
            return "multiband"


def _resolution(like: Image, scale: float) -> dict[str, float]:
    if like.metadata.resolution is None:
        return {}
    xres, yres = like.metadata.resolution
    return {"xres": xres * scale, "yres": yres * scale}


def _set_fields(pyvips, picture, file_format: FileFormat, channels: int, like: Image) -> None:
    types = {bytes: pyvips.GValue.blob_type, str: pyvips.GValue.refstr_type, int: pyvips.GValue.gint_type,
             float: pyvips.GValue.gdouble_type}
    for name, value in like.metadata.fields.items():
        if name == "icc-profile-data" and not _profile_fits(value, file_format, channels):
            continue
        picture.set_type(types[type(value)], name, value)
    if like.metadata.orientation != 1:
        picture.set_type(pyvips.GValue.gint_type, "orientation", like.metadata.orientation)


def _profile_fits(profile: bytes, file_format: FileFormat, channels: int) -> bool:
    """Whether an ICC profile describes what is written: its colour space is bytes 16..19 of its header."""
    expected = {1: b"GRAY", 3: b"RGB ", 4: b"CMYK"}.get(3 if file_format.name == "webp" else channels)
    return expected is None or profile[16:20] in (expected, b"Lab ", b"XYZ ")
