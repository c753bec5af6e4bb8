"""Read an image file: the checks that every file gets, then the reader of its format."""

import functools
import hashlib
import os
from pathlib import Path

from dipengine.errors import ImageError, InputError
from dipengine.images.atomic import printable_name
from dipengine.images.fits_reading import is_fits, read_fits
from dipengine.images.image import Image
from dipengine.images.limits import MAX_PIXELS
from dipengine.images.pages import check_pages, file_and_page
from dipengine.images.raster_reading import read_raster


def read_image(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Image:
    """The image in a PNG, JPEG, WebP, TIFF, GIF, HEIF/AVIF or FITS file (FITS also gzip-compressed).

    Of several pages one is named: "stack.tif[page=3]" (`pages`). Bit depth, channels and metadata are kept as they are; palettes and
    1-bit images become 8-bit. The pixels come upright (EXIF orientation applied). A FITS image keeps its row order (row 0 is FITS
    row 1). NaN in floats, and BLANK in FITS, are missing: `Image.known` is False there. A grey image with a second channel and an
    RGB image with a fourth have alpha; a TIFF of more channels has colour channels alone.

    Raises ImageError (a missing, empty or damaged file, an animated or multi-page one of which no page is named, infinite values, no
    known pixel, more than `max_pixels` pixels by its header) and DependencyError (FITS without astropy).
    """
    if max_pixels < 1:
        raise InputError(f"max-pixels is {max_pixels}; ask for at least 1.")
    source, page = file_and_page(path)
    check_readable(Path(source))
    digest = digest_of(path)
    if not is_fits(source):
        return read_raster(source, page, sha256=digest, max_pixels=max_pixels)
    check_pages(source, 1, page)
    return read_fits(source, sha256=digest, max_pixels=max_pixels)


def digest_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, hexadecimal; of a page's, those of its whole file. Raises ImageError where it cannot be opened."""
    source, page = file_and_page(path)
    try:
        if page is None:
            return _digest(source)
        status = os.stat(source)
        # The pages of a stack are read one after the other: it is not read to its end for each.
        return _digest_of_stack(source, status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ImageError(f"{source} cannot be opened ({error.strerror or error}); check its permissions.") from error


def _digest(source: str) -> str:
    with open(source, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=16)
def _digest_of_stack(source: str, *seen: int) -> str:
    """seen: by which it is known again."""
    return _digest(source)


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
