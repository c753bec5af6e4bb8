"""Pixels without a value: NaN in any channel, BLANK in FITS, the masked ones of a masked array. Infinite values mean nothing."""

from __future__ import annotations

from typing import Any

from dipengine.errors import ImageError
from dipengine.images.image import Image
from dipengine.images.namespaces import any_true, is_float, namespace


def known_of(pixels: Any, missing: Any, source: str) -> Any:
    """Bool [H, W], True where every channel has a value.

    pixels, missing: [H, W, C] of one library; missing is bool, what NaN does not say, or None. Raises ImageError for infinite values.
    """
    xp = namespace(pixels)
    if is_float(pixels):
        if any_true(xp.isinf(pixels)):
            raise ImageError(f"{source} holds infinite values; write NaN where pixels are missing.")
        missing = xp.isnan(pixels) if missing is None else missing | xp.isnan(pixels)
    return ~xp.any(missing, axis=2)


def check_some_known(some: bool, source: str) -> None:
    """Raises ImageError where no pixel is known."""
    if not some:
        raise ImageError(f"{source} has no known pixel (every one is NaN, BLANK or masked in some channel); "
                         "give an image with data.")


def check_alpha(alpha: Any, source: str) -> None:
    """Raises ImageError for transparency that is NaN or infinite."""
    if alpha is not None and is_float(alpha) and not bool(namespace(alpha).all(namespace(alpha).isfinite(alpha))):
        raise ImageError(f"The alpha channel of {source[:1].lower() + source[1:] if source.startswith('The ') else source} holds NaN or infinite values; set every pixel's between 0 and 1.")


def known_in(image: Image, missing: Any, source: str) -> Any:
    """What `Image.known` is to be: `known_of`, or None where every pixel is known. Raises ImageError."""
    check_alpha(image.alpha, source)
    if missing is None and not is_float(image.pixels):
        return None
    known = known_of(image.pixels, missing, source)
    check_some_known(any_true(known), source)
    return known if any_true(~known) else None
