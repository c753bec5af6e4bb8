"""Write an image file, and say before a long fit whether that will work."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dipengine.errors import InputError, OutputError
from dipengine.images.atomic import atomic_path, check_target
from dipengine.images.fits_reading import load_fits
from dipengine.images.fits_writing import write_fits, write_fits_from
from dipengine.images.formats import check_holds, format_for
from dipengine.images.image import Image
from dipengine.images.raster_writing import write_raster, write_raster_from
from dipengine.images.raw import RawPixels
from dipengine.images.vips import load_pyvips


def check_writable(
    path: str | os.PathLike, like: Image | None = None, *, alpha: bool = False, scale: float = 1
) -> None:
    """Check that an image can be written to `path`: folder, extension, needed package, and, given `like`, its kind.

    like: the image whose dtype, channels and size (times `scale`) the output will have; alpha: whether an alpha
    channel will be written. Raises OutputError and DependencyError. Nothing is left behind.
    """
    check_target(path)
    file_format = format_for(path)
    load_fits() if file_format.name == "fits" else load_pyvips()
    if like is not None:
        shape = (round(like.height * scale), round(like.width * scale), like.channels)
        check_holds(path, like.dtype, shape, alpha=alpha, cmyk=_is_cmyk(like, like.channels))


def write_image(
    path: str | os.PathLike,
    pixels: np.ndarray,
    like: Image,
    *,
    alpha: np.ndarray | None = None,
    scale: float = 1,
) -> None:
    """Write upright H x W x C pixels, in their own dtype, in the format that the extension of `path` names.

    like: the image that they were made from; its colour profile, EXIF, XMP, orientation (the layout is turned back),
    resolution and FITS header go along as far as the format has a place for them. alpha: H x W in the pixels' dtype,
    written where the format holds it. scale: how many times more pixels per side than `like` (resolution and WCS
    follow). The file appears whole or not at all (see `atomic_path`).

    Raises InputError (arrays that do not fit together) and OutputError (the place, the format, the disk).
    """
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise InputError(f"The pixels have shape {pixels.shape}; give height x width x channels, each at least 1.")
    if alpha is not None and (alpha.shape != pixels.shape[:2] or alpha.dtype != pixels.dtype):
        raise InputError(f"The alpha channel is {alpha.shape} {alpha.dtype} but the image is {pixels.shape[:2]} "
                         f"{pixels.dtype}; give alpha of the image's size and dtype.")
    check_target(path)
    file_format = check_holds(path, pixels.dtype, pixels.shape, alpha=alpha is not None,
                              cmyk=_is_cmyk(like, pixels.shape[2]))
    with _written(path) as temporary:
        if file_format.name == "fits":
            write_fits(temporary, pixels, like, scale=scale, packed=_packed(path))
        else:
            write_raster(temporary, file_format, pixels, like, alpha=alpha, scale=scale)


def write_image_from(path: str | os.PathLike, raw: RawPixels, like: Image, *, alpha: bool = False, scale: float = 1) -> None:
    """As `write_image`, from a file of raw pixels, a part of which is in memory at a time.

    raw: in the stored layout of `like`'s orientation, the alpha channel last where `alpha` says that there is one.
    """
    check_target(path)
    channels = raw.shape[2] - alpha
    file_format = check_holds(path, raw.dtype, (raw.height, raw.width, channels), alpha=alpha, cmyk=_is_cmyk(like, channels))
    with _written(path) as temporary:
        if file_format.name == "fits":
            write_fits_from(raw, temporary, like, scale=scale, packed=_packed(path))
        else:
            write_raster_from(raw, temporary, file_format, like, alpha=alpha, scale=scale)


@contextmanager
def _written(path: str | os.PathLike) -> Iterator[Path]:
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except MemoryError as error:
        raise OutputError(f"{path} cannot be written because memory ran out; free some memory.") from error


def _packed(path: str | os.PathLike) -> bool:
    return os.fspath(path).lower().endswith(".gz")


def _is_cmyk(like: Image, channels: int) -> bool:
    return like.metadata.interpretation == "cmyk" and channels == like.channels
