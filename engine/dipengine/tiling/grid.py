"""Where the tiles of an image lie, and how much each counts at every pixel: a function of sizes alone.

Per axis, the fewest tiles of one common length L that overlap by at least the overlap asked for, spread evenly (so that all are
of one canvas size), L no longer than covering takes. Between neighbours i and i + 1 lies the centre c_i of what both cover; over r
pixels around it, as many as every pair of neighbours has less the guard on both sides,

    T_i(x) = sin^2(pi/2 t),    t = (x + 1/2 - c_i) / r + 1/2, clipped to [0, 1]

leads from 0 to 1 (a raised cosine), and tile i weighs w_i = T_{i-1} - T_i. Since all T have one shape and their centres ascend, no
weight is negative, and the sum telescopes to 1 also where more than two tiles meet. An image's weight is the product of its axes'.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dipengine.errors import InputError


@dataclass(frozen=True)
class Axis:
    """The tiles along one axis of an image of `length` pixels.

    side: longest tile, pixels of the input; overlap: least overlap of neighbours that blends; guard: pixels more at every inner end
    that weigh nothing (a data term is incomplete there). scale: output pixels per input pixel. step, smallest, margin: a tile of n
    pixels fills its canvas where n * scale + margin is a multiple of step and at least smallest.

    Raises InputError for a side that no canvas fills, or an overlap of more than half a tile.
    """

    length: int
    side: int
    overlap: int
    scale: int = 1
    step: int = 1
    smallest: int = 1
    margin: int = 0
    guard: int = 0

    def __post_init__(self) -> None:
        if self.length <= self.side:
            return
        least = self._fitting(1)
        if self.side < least:
            raise InputError(f"A tile's side is {self.side}; give at least {least} pixels.")
        if self.overlap < 0 or 2 * self._shared > self._longest:
            most = self._longest // 2 - 2 * self.guard
            if most < 0:
                raise InputError(
                    f"Tiles of {self._longest} pixels are too small beside what the operator reaches; give a larger side."
                )
            raise InputError(f"The overlap of tiles is {self.overlap} pixels; give 0 to {most} for tiles of {self._longest}.")

    @property
    def count(self) -> int:
        """Number of tiles."""
        if self.length <= self.side:
            return 1
        return -(-(self.length - self._shared) // (self._longest - self._shared))

    @cached_property
    def tile(self) -> int:
        """Length of every tile, input pixels."""
        if self.length <= self.side:
            return self.length
        return self._fitting(-(-(self.length + (self.count - 1) * self._shared) // self.count))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First input pixel of each tile."""
        last, free = self.count - 1, self.length - self.tile
        return tuple((free * i + last // 2) // last for i in range(last)) + (free,)

    def weights(self, index: int) -> np.ndarray:
        """float64 [tile * scale]: how much a tile counts at each of its output pixels, in [0, 1]; over all tiles they sum to 1."""
        first = self.starts[index] * self.scale
        x = np.arange(first, first + self.tile * self.scale) + 0.5
        before = self._transition(index - 1, x) if index else 1.0
        after = self._transition(index, x) if index + 1 < self.count else 0.0
        return np.broadcast_to(before - after, x.shape).astype(np.float64)

    def _transition(self, i: int, x: np.ndarray) -> np.ndarray:
        centre = self.scale * (self.starts[i + 1] + self.starts[i] + self.tile) / 2
        if self._ramp == 0:
            return (x > centre).astype(np.float64)
        return np.sin(np.pi / 2 * np.clip((x - centre) / self._ramp + 0.5, 0, 1)) ** 2

    @cached_property
    def _ramp(self) -> int:
        overlaps = [first + self.tile - second for first, second in zip(self.starts, self.starts[1:])]
        return self.scale * (min(overlaps) - 2 * self.guard)

    @property
    def _shared(self) -> int:
        return self.overlap + 2 * self.guard

    @cached_property
    def _longest(self) -> int:
        return max(n for n in range(1, self.side + 1) if self._fills(n))

    def _fitting(self, least: int) -> int:
        """The shortest length of at least `least` that fills its canvas."""
        return next(n for n in range(least, least + self.step + self.smallest) if self._fills(n))

    def _fills(self, length: int) -> bool:
        canvas = length * self.scale + self.margin
        return canvas % self.step == 0 and canvas >= self.smallest


@dataclass(frozen=True)
class Tile:
    """One tile: its place in the grid and its window, in pixels of the input and of the output."""

    index: int
    row: int
    column: int
    top: int
    left: int
    height: int
    width: int
    scale: int = 1

    @property
    def rows(self) -> slice:
        """Rows of the input."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Columns of the input."""
        return slice(self.left, self.left + self.width)

    @property
    def output_rows(self) -> slice:
        """Rows of the restored image."""
        return slice(self.top * self.scale, (self.top + self.height) * self.scale)

    @property
    def output_columns(self) -> slice:
        """Columns of the restored image."""
        return slice(self.left * self.scale, (self.left + self.width) * self.scale)

    def to_dict(self) -> dict[str, Any]:
        """Its place and input window, for records."""
        return {"row": self.row, "column": self.column, "window": [self.left, self.top, self.width, self.height]}


@dataclass(frozen=True)
class TileGrid:
    """The tiles of an image, row by row; `rows` and `columns` are the axes."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(
        cls,
        height: int,
        width: int,
        side: int | tuple[int, int],
        overlap: int,
        *,
        scale: int = 1,
        step: int = 1,
        smallest: int = 1,
        margins: tuple[int, int] = (0, 0),
        guards: tuple[int, int] = (0, 0),
    ) -> TileGrid:
        """The grid of an image of height x width input pixels; pairs are (rows, columns). See `Axis`."""
        sides = side if isinstance(side, tuple) else (side, side)
        return cls(
            Axis(height, sides[0], overlap, scale, step, smallest, margins[0], guards[0]),
            Axis(width, sides[1], overlap, scale, step, smallest, margins[1], guards[1]),
        )

    def __len__(self) -> int:
        return self.rows.count * self.columns.count

    def __getitem__(self, index: int) -> Tile:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row, column = divmod(index, self.columns.count)
        return Tile(
            index, row, column, self.rows.starts[row], self.columns.starts[column], self.rows.tile, self.columns.tile,
            self.rows.scale,
        )

    def __iter__(self) -> Iterator[Tile]:
        return (self[index] for index in range(len(self)))

    def weights(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Of a tile's output rows and columns, float64; a pixel's weight is the product. They sum to 1 over all tiles."""
        row, column = divmod(index, self.columns.count)
        return self.rows.weights(row), self.columns.weights(column)

    def __str__(self) -> str:
        return f"{len(self)} of {self.columns.tile}x{self.rows.tile}, overlap {self.rows.overlap}"

    def to_dict(self) -> dict[str, Any]:
        """All that the grid is a function of, and what came out, for records."""
        rows, columns = self.rows, self.columns
        return {
            "tiles": len(self),
            "rows": rows.count,
            "columns": columns.count,
            "tile": [rows.tile, columns.tile],
            "side": [rows.side, columns.side],
            "overlap": rows.overlap,
            "guard": [rows.guard, columns.guard],
        }
