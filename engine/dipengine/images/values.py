"""The map between an image's own units and the generator's [0, 1]: affine, or a curve and then affine.

Written against the array's own namespace (`namespaces`), computed in float64 a block of rows at a time: a float64
image loses nothing inside the map, and no second copy of the image in float64 is ever held.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dipengine.errors import InputError
from dipengine.images.namespaces import cast, dtype_in, empty_beside, extremes, integers, namespace

_BLOCK_ELEMENTS = 1 << 21
_COUNTS_BELOW = 1 << 14  # 16-bit values that leave three quarters of their range unused


class Curve(Protocol):
    """A monotone function of data values that a fit sees instead of them, such as a variance-stabilising transform."""

    def forward(self, data: Any) -> Any:
        """Fitted values, float64 of the same shape, of data values."""

    def inverse(self, fitted: Any) -> Any:
        """Data values, float64 of the same shape, that fitted values stand for."""

    def to_dict(self) -> dict[str, Any]:
        """The curve for records (JSON-able)."""


@dataclass(frozen=True)
class ValueMap:
    """unit = (value - low) / (high - low), with `low` < `high` in data units. One map per image or series.

    With a `curve` c, unit = (c(value) - c(low)) / (c(high) - c(low)).
    """

    low: float
    high: float
    curve: Curve | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and math.isfinite(self.high - self.low)):
            raise InputError(f"The value range {self.low:g},{self.high:g} is not finite; "
                             "give --range lo,hi (value_range) with two finite numbers.")
        if self.low >= self.high:
            raise InputError(f"The value range {self.low:g},{self.high:g} is empty; "
                             "give --range lo,hi (value_range) with lo below hi.")

    @classmethod
    def for_image(
        cls, pixels: Any, known: Any = None, value_range: Sequence[float] | None = None, *, data_units: bool = False
    ) -> "ValueMap":
        """The map of an image: `value_range` if given; 0..255 or 0..65535 for uint8 and uint16; else its own range.

        pixels: H x W x C; known: H x W bool or None (all). data_units: take the range of the known pixels for uint8
        and uint16 too (FITS: `Image.in_data_units`); so do uint16 whose known pixels all lie below 2^14: the counts of
        a camera of 14 bits or fewer, which would be one dark grey on the scale of 0..65535. A constant image gets
        high = low + 1, or the next value that differs from low where low is too large for that. Raises InputError: no
        known pixel, a value that is not finite, a bad range.
        """
        if value_range is not None:
            return cls(*_two_numbers(value_range))
        xp = namespace(pixels)
        if pixels.dtype == xp.uint8 and not data_units:
            return cls(*_whole("uint8"))
        values = pixels if known is None else pixels[known]
        if math.prod(values.shape) == 0:
            raise InputError("The image has no known pixel, so that its range is unknown; "
                             "give a mask with some white in it.")
        low, high = extremes(values)
        if pixels.dtype == xp.uint16 and not data_units and high >= _COUNTS_BELOW:
            return cls(*_whole("uint16"))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError("The image holds NaN or infinite values among its known pixels; replace or mask them.")
        if low == high:
            high = max(low + 1.0, math.nextafter(low, math.inf))
        return cls(low, high)

    def is_whole(self, dtype: str) -> bool:
        """Whether 0 and 1 are the ends of what an image of that dtype's name holds, which only 8 and 16 bits are mapped by."""
        return dtype in ("uint8", "uint16") and (self.low, self.high) == _whole(dtype)

    @property
    def of_integers(self) -> bool:
        """Whether 0 and 1 are the ends of what 8 or 16 bits hold, beyond which no value of such an image lies."""
        return self.curve is None and (self.low, self.high) in (_whole("uint8"), _whole("uint16"))

    @property
    def span(self) -> float:
        """Data units between 0 and 1; without a curve, multiply by it what is a difference (sigma), not a value."""
        return self.high - self.low

    @property
    def fitted_range(self) -> tuple[float, float]:
        """What 0 and 1 stand for behind the curve; (low, high) without one."""
        if self.curve is None:
            return self.low, self.high
        return float(self.curve.forward(self.low)), float(self.curve.forward(self.high))

    def to_unit(self, pixels: Any) -> Any:
        """Float32 array of the pixels' shape: low maps to 0, high to 1, nothing is clipped; NaN (missing) gives 0."""
        xp = namespace(pixels)
        start, end = self.fitted_range
        span = end - start
        unit = empty_beside(pixels, pixels.shape, xp.float32)
        for rows in _blocks(pixels.shape):
            block = cast(pixels[rows, ...], xp.float64)
            block = ((block if self.curve is None else self.curve.forward(block)) - start) / span
            unit[rows, ...] = cast(xp.where(xp.isnan(block), xp.zeros_like(block), block), xp.float32)
        return unit

    def from_unit(self, unit: Any, dtype: Any) -> Any:
        """Array of `dtype` in data units: integers rounded to nearest (half to even) and clipped to the dtype's
        range, floats not clipped."""
        xp = namespace(unit)
        dtype = dtype_in(xp, dtype)
        values = empty_beside(unit, unit.shape, dtype)
        limits = _integer_limits(xp, dtype)
        start, end = self.fitted_range
        for rows in _blocks(unit.shape):
            block = cast(unit[rows, ...], xp.float64) * (end - start) + start
            if self.curve is not None:
                block = self.curve.inverse(block)
            if limits is not None:
                block = xp.clip(xp.round(block), *limits)
            values[rows, ...] = cast(block, dtype)
        return values

    def to_dict(self) -> dict[str, Any]:
        """{"low": ..., "high": ...} and "curve" where there is one, for records."""
        ends = {"low": self.low, "high": self.high}
        return ends if self.curve is None else {**ends, "curve": self.curve.to_dict()}

    @classmethod
    def from_dict(cls, record: dict[str, Any], curve: Curve | None = None) -> "ValueMap":
        """The map that `to_dict` wrote; `curve` made anew from record["curve"] by whoever knows its kinds."""
        if (curve is None) != ("curve" not in record):
            raise ValueError("the value map and its curve do not belong together")
        return cls(float(record["low"]), float(record["high"]), curve)


def _two_numbers(value_range: Any) -> tuple[float, float]:
    try:
        low, high = value_range
        if isinstance(value_range, str):
            raise ValueError
        return float(low), float(high)
    except (TypeError, ValueError):
        raise InputError(f"The value range is {value_range!r}; give two numbers, (lo, hi).") from None


def _whole(dtype: str) -> tuple[float, float]:
    return 0.0, float(np.iinfo(dtype).max)


def _integer_limits(xp: Any, dtype: Any) -> tuple[float, float] | None:
    if not integers(xp, dtype):
        return None
    info = xp.iinfo(dtype)
    low, high = float(info.min), float(info.max)
    # 2^63 - 1 and 2^64 - 1 round up in float64, past what the cast can take.
    return low, high if int(high) <= int(info.max) else math.nextafter(high, 0.0)


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    rows = max(1, _BLOCK_ELEMENTS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))
