"""Read PNG, JPEG, WebP, TIFF, GIF and HEIF/AVIF through libvips (Pillow and scikit-image cut 16-bit RGB PNG to 8).

TIFF of 64 bits a sample, which libvips does not read, goes to `deep_tiff_reading`.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from dipengine.errors import ImageError
from dipengine.images.deep_tiff_reading import deep_pages, has_deep_samples, read_deep_tiff
from dipengine.images.image import Image, Metadata
from dipengine.images.jpeg_coding import coding_in
from dipengine.images.limits import check_size
from dipengine.images.missing import known_in
from dipengine.images.orientation import upright
from dipengine.images.pages import check_pages, page_name
from dipengine.images.vips import load_pyvips, reason

# libvips would also open documents, vector graphics and whatever ImageMagick knows: those loaders stay shut.
_FORMATS = {"Png": "png", "Jpeg": "jpeg", "Webp": "webp", "Tiff": "tiff", "Nsgif": "gif", "Gif": "gif", "Heif": "heif"}
# libvips does not know a TIFF as one when its directory, often the last thing in the file, is cut off.
_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8")
_KEPT_FIELDS = frozenset(("icc-profile-data", "exif-data", "xmp-data", "iptc-data", "photoshop-data",
                          "resolution-unit", "image-description", "gainmap-data"))
_KEPT_PREFIXES = ("exif-ifd", "png-comment-", "magickprofile-")
# libvips gives 1 pixel per millimetre to a file that states no resolution.
_UNSTATED_RESOLUTION = (1.0, 1.0)


def read_raster(source: str, page: int | None = None, *, sha256: str, max_pixels: int) -> Image:
    """The image in the file `source`, upright; see `read_image` for what is kept and what is refused."""
    pyvips = load_pyvips()
    try:
        opened, file_format = open_raster(source, page, max_pixels=max_pixels)
        stored = opened.numpy().reshape(opened.height, opened.width, opened.bands)
    except pyvips.Error as error:
        if has_deep_samples(source, page):
            return read_deep_tiff(source, page, sha256=sha256, max_pixels=max_pixels)
        raise undecodable(source, error) from error
    except MemoryError as error:
        raise ImageError(f"{source} does not fit into memory; cut it into parts.") from error
    metadata = metadata_of(opened, source if file_format == "jpeg" else None)
    pixels, alpha = _split(upright(stored, metadata.orientation), has_alpha(opened))
    name = source if page is None else page_name(source, page)
    image = Image(pixels=pixels, alpha=alpha, source=name, format=file_format, sha256=sha256, metadata=metadata)
    return replace(image, known=known_in(image, None, name))


def open_raster(source: str, page: int | None = None, *, max_pixels: int) -> tuple[Any, str]:
    """A pyvips image to be read once from top to bottom, nothing decoded yet, and the format's name.

    Raises ImageError (foreign, several pages and none named, too large) and pyvips.Error (damaged; TIFF of 64 bits a sample).
    """
    pyvips = load_pyvips()
    stream = pyvips.Source.new_from_file(source)
    file_format = _format(pyvips, stream, source)
    try:
        opened = pyvips.Image.new_from_source(stream, "", access="sequential", fail_on="error")
        pages = opened.get_n_pages()
    except pyvips.Error:
        if not page:
            raise
        pages = deep_pages(source)  # the first page may be of 64 bits a sample, and this one not
    check_pages(source, pages, page)
    if page:
        stream = pyvips.Source.new_from_file(source)
        opened = pyvips.Image.new_from_source(stream, "", access="sequential", fail_on="error", page=page)
    check_size(source, opened.height, opened.width, opened.bands, max_pixels)
    return opened, file_format


def pages_in(source: str) -> int:
    """How many pages or frames a file of the kinds above has; 1 where nobody can tell."""
    pyvips = load_pyvips()
    try:
        stream = pyvips.Source.new_from_file(source)
        _format(pyvips, stream, source)
        return pyvips.Image.new_from_source(stream, "", access="sequential").get_n_pages()
    except ImageError:
        return 1
    except pyvips.Error:
        return deep_pages(source)


def undecodable(source: str, error: Exception) -> ImageError:
    """What to raise where libvips fails."""
    return ImageError(f"{source} is damaged, cut short or of an unusual kind, and cannot be decoded "
                      f"({reason(error)}); fetch or export it again.")


def _format(pyvips, stream, source: str) -> str:
    loader = pyvips.vips_lib.vips_foreign_find_load_source(stream.pointer)
    name = "" if loader == pyvips.ffi.NULL else pyvips.ffi.string(loader).decode()
    file_format = _FORMATS.get(name.removeprefix("VipsForeignLoad").removesuffix("Source"))
    if file_format is None and _starts_like_an_image(source):
        raise ImageError(f"{source} is damaged or cut short and cannot be decoded; fetch or export it again.")
    if file_format is None:
        raise ImageError(f"{source} is not an image of a kind that is read here; "
                         "give PNG, JPEG, WebP, TIFF, GIF, HEIF, AVIF or FITS.")
    return file_format


def _starts_like_an_image(source: str) -> bool:
    with open(source, "rb") as file:
        return file.read(4).startswith(_SIGNATURES)


def metadata_of(opened, jpeg: str | None = None) -> Metadata:
    """What is kept of an opened image's metadata. jpeg: the path of a JPEG file."""
    names = [name for name in opened.get_fields() if name in _KEPT_FIELDS or name.startswith(_KEPT_PREFIXES)]
    if opened.get_n_pages() > 1:  # ImageJ and OME describe the whole stack there
        names = [name for name in names if name != "image-description"]
    fields = {name: opened.get(name) for name in names}
    resolution = (opened.xres, opened.yres)
    orientation = opened.get("orientation") if opened.get_typeof("orientation") else 1
    orientation = orientation if 1 <= orientation <= 8 else 1
    return Metadata(
        interpretation=str(opened.interpretation),
        orientation=orientation,
        resolution=None if resolution == _UNSTATED_RESOLUTION else resolution,
        fields={name: value for name, value in fields.items() if isinstance(value, (bytes, str, int, float))},
        jpeg=None if jpeg is None else coding_in(jpeg, orientation),
    )


def has_alpha(opened) -> bool:
    """Whether an opened image's last band is transparency."""
    # libvips counts every channel beyond grey or RGB as alpha; more than one of them is data.
    colours = {"cmyk": 4, "b-w": 1, "grey16": 1}.get(str(opened.interpretation), 3)
    return opened.hasalpha() and opened.bands == colours + 1


def _split(stored: np.ndarray, has_alpha: bool) -> tuple[np.ndarray, np.ndarray | None]:
    if not has_alpha:
        return stored, None
    return np.ascontiguousarray(stored[..., :-1]), np.ascontiguousarray(stored[..., -1])
