"""Read an image file: the checks that every file gets, then the reader of its format."""

import hashlib
import os
from pathlib import Path

from dipengine.errors import ImageError, InputError
from dipengine.images.atomic import printable_name
from dipengine.images.fits_reading import is_fits, read_fits
from dipengine.images.image import Image
from dipengine.images.limits import MAX_PIXELS
from dipengine.images.raster_reading import read_raster


def read_image(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Image:
    """The image in a PNG, JPEG, WebP, TIFF, GIF, HEIF/AVIF or FITS file (FITS also gzip-compressed).

    Bit depth, channels and metadata are kept as they are; palettes and 1-bit images become 8-bit. The pixels come
    upright (EXIF orientation applied). A FITS image keeps its row order (row 0 is FITS row 1). NaN in
    floats, and BLANK in FITS, are missing: `Image.known` is False there. A grey image with a second channel and an RGB image
    with a fourth have alpha; a TIFF of more channels has colour channels alone.

    Raises ImageError (a missing, empty, damaged, animated or multi-page file, infinite values, no known pixel, more than `max_pixels` pixels by its header) and DependencyError (FITS without astropy).
    """
    if max_pixels < 1:
        raise InputError(f"max-pixels is {max_pixels}; ask for at least 1.")
    source = os.fspath(path)
    check_readable(Path(source))
    digest = digest_of(source)
    reader = read_fits if is_fits(source) else read_raster
    return reader(source, sha256=digest, max_pixels=max_pixels)


def digest_of(source: str) -> str:
    """SHA-256 of a file's bytes, hexadecimal. Raises ImageError where it cannot be opened."""
    try:
        with open(source, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"{source} cannot be opened ({error.strerror or error}); check its permissions.") from error


def check_readable(path: Path) -> None:
    """Refuse, in one sentence, what is not a file with something in it."""
    if not printable_name(path):
        raise ImageError(f"{str(path)!r} has a name that is not valid UTF-8, which libvips cannot open; rename the file.")
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(f"{path} does not exist; check the path.") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} cannot be opened ({error}); check its name and permissions.") from error
    if path.is_dir():
        raise ImageError(f"{path} is a folder; give one image file, or the folder to dipengine batch.")
    if not path.is_file():
        raise ImageError(f"{path} is not a regular file; give an image file on disk.")
    if status.st_size == 0:
        raise ImageError(f"{path} is empty; fetch or export the image again.")
