"""Read TIFF of 64 bits a sample through tifffile: libvips writes such files but stops at 32 bits when it reads."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from dipengine.errors import DependencyError, ImageError
from dipengine.images.image import Image, Metadata
from dipengine.images.limits import check_size
from dipengine.images.missing import known_in
from dipengine.images.orientation import upright
from dipengine.images.pages import check_pages, page_name

_MILLIMETRES = {2: 25.4, 3: 10.0}  # of a resolution unit: inch, centimetre
_BLOBS = {"icc-profile-data": 34675, "xmp-data": 700, "iptc-data": 33723}  # libvips's name: TIFF tag


def deep_pages(source: str) -> int:
    """The pages of a TIFF; 1 where tifffile cannot tell."""
    return _told(source, lambda file: max(1, len(file.pages)), 1)


def has_deep_samples(source: str, page: int | None = None) -> bool:
    """Whether a file that libvips took for TIFF has 64 bits a sample; False too where tifffile cannot tell."""
    return _told(source, lambda file: file.pages[min(page or 0, len(file.pages) - 1)].bitspersample == 64, False)


def _told(source: str, question: Callable[[Any], Any], otherwise: Any) -> Any:
    """What an opened TIFF says; `otherwise` where it says nothing."""
    import tifffile

    try:
        with tifffile.TiffFile(source) as file:
            return question(file)
    except Exception:  # whatever a broken directory leads it into: libvips's own words describe it
        return otherwise


def read_deep_tiff(source: str, number: int | None = None, *, sha256: str, max_pixels: int) -> Image:
    """The image (of page `number`), upright, as `read_raster` gives it; profile, XMP, IPTC, orientation and resolution are kept.

    Raises ImageError (several pages and none named, damaged, too large) and DependencyError where its compression needs
    imagecodecs.
    """
    import tifffile

    with tifffile.TiffFile(source) as file:
        check_pages(source, len(file.pages), number)
        page = file.pages[number or 0]
        check_size(source, page.imagelength, page.imagewidth, page.samplesperpixel, max_pixels)
        axes = page.axes
        if axes not in ("YX", "YXS", "SYX") or page.dtype is None or page.dtype.kind not in "iuf":
            raise ImageError(f"{source} holds samples of an unusual kind; export it as TIFF of integers or floats.")
        if max(o + n for o, n in zip(page.dataoffsets, page.databytecounts)) > file.filehandle.size:
            raise ImageError(f"{source} is damaged or cut short and cannot be decoded; fetch or export it again.")
        try:
            stored = page.asarray()
        except Exception as error:  # tifffile raises whatever the codecs do
            if "imagecodecs" in str(error):
                raise DependencyError(
                    f"{source} is packed by {page.compression.name}, which needs imagecodecs at 64 bits a sample; "
                    "install it with pip install imagecodecs."
                ) from error
            raise ImageError(f"{source} is damaged or cut short and cannot be decoded "
                             f"({type(error).__name__}); fetch or export it again.") from error
        metadata = _metadata(page)
        alpha_last = _has_alpha(page)
    stored = stored[..., None] if axes == "YX" else np.moveaxis(stored, 0, -1) if axes == "SYX" else stored
    pixels = upright(stored.astype(stored.dtype.newbyteorder("="), copy=False), metadata.orientation)
    alpha = np.ascontiguousarray(pixels[..., -1]) if alpha_last else None
    pixels = np.ascontiguousarray(pixels[..., :-1]) if alpha_last else pixels
    name = source if number is None else page_name(source, number)
    image = Image(pixels=pixels, alpha=alpha, source=name, format="tiff", sha256=sha256, metadata=metadata)
    return replace(image, known=known_in(image, None, name))


def _has_alpha(page) -> bool:
    colours = 3 if page.photometric.name == "RGB" else 1
    return page.samplesperpixel == colours + 1 and len(page.extrasamples) == 1


def _metadata(page) -> Metadata:
    values = {name: page.tags.valueof(tag) for name, tag in _BLOBS.items()}
    orientation = page.tags.valueof(274) or 1
    unit = _MILLIMETRES.get(int(page.resolutionunit))
    stated = unit is not None and "XResolution" in page.tags and "YResolution" in page.tags
    return Metadata(
        orientation=int(orientation) if 1 <= orientation <= 8 else 1,
        resolution=tuple(number / unit for number in page.resolution) if stated else None,
        fields={name: value for name, value in values.items() if isinstance(value, bytes)},
    )
