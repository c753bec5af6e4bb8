"""Which pixels a task may use: those that the file knows and the mask leaves; and whether what is known is delivered as it came."""

from __future__ import annotations

from typing import Any

from dipengine.errors import InputError
from dipengine.images.namespaces import any_true
from dipengine.tasks.base import TaskOption

MASK_OPTIONS = (
    TaskOption("mask", "image of the input's size: white = known, black = missing (ignored and filled in)", "mask"),
    TaskOption("invert-mask", "the mask is white where pixels are missing", bool, False),
)


def known_option(kept: str) -> TaskOption:
    """`known`; kept: what "keep" keeps."""
    return TaskOption(
        "known", f"keep: {kept}; fit: all is as the generator paints it (default: keep, fit under --preset paper)", str,
        choices=("keep", "fit"),
    )


def keeps_known(known: str | None, preset: str) -> bool:
    """Whether the option asks for what is known. Raises InputError."""
    if known not in (None, "keep", "fit"):
        raise InputError(f"known is {known!r}; it takes keep or fit.")
    return known == "keep" or (known is None and preset != "paper")


def known_pixels(
    known: Any, mask: Any, invert: bool, shape: tuple[int, int]
) -> Any:
    """Bool [H, W], True where a pixel is known; None: everywhere.

    known: of the file or array (NaN, BLANK), mask: of the caller, both bool [H, W] or None. Raises InputError for a mask of
    another size, or when nothing is left.
    """
    if mask is None:
        return known
    if tuple(mask.shape) != tuple(shape):
        raise InputError(
            f"The mask is {mask.shape[1]}x{mask.shape[0]} and the image {shape[1]}x{shape[0]} pixels; "
            f"they must be of one size."
        )
    mask = ~mask if invert else mask
    both = mask if known is None else known & mask
    if not any_true(both):
        raise InputError("The mask leaves no pixel known; white means known, --invert-mask turns a mask around.")
    return both
