"""What only the whole image tells, in passes over it from top to bottom: its range, which of its pixels are known, its mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dipengine.errors import InputError
from dipengine.images import Image, LargeImage, RawPixels, ValueMap
from dipengine.images.image import opaque
from dipengine.images.jpeg_coding import JpegCoding
from dipengine.noise.estimate import PATCH
from dipengine.noise.light import REACH
from dipengine.tasks import Task
from dipengine.tasks.dejpeg import coding_of
from dipengine.tasks.inpaint import NOTHING_MISSING, random_mask
from dipengine.tiling.grid import TileGrid

_SAMPLE = 1_000_000  # pixels
_WINDOW = 1024  # pixels a side, in which a JPEG's coding is looked for
_UNIT = 16  # pixels a side of what a JPEG with halved colours is coded in
_BESIDE = max(REACH, PATCH - 1)  # rows beyond those of a part that what is known of its noise looks at


@dataclass(frozen=True)
class Survey:
    """sample: a million known pixels, those of least and greatest value among them, as an image of one column.
    mean: of the known pixels by channel, data units."""

    sample: Image
    mean: np.ndarray

    @classmethod
    def of(cls, image: LargeImage, known: RawPixels | None) -> Survey:
        """Raises InputError where no pixel is known."""
        stride = -(-image.like.height * image.like.width // _SAMPLE)
        total, count, drawn, extremes = np.zeros(image.like.channels), 0, [], []
        for rows, band in image.bands():
            there = None if known is None else known.read(rows)[:, :, 0].astype(bool)
            pixels = band.pixels.reshape(-1, image.like.channels) if there is None else band.pixels[there]
            if not len(pixels):
                continue
            drawn.append(pixels[-count % stride :: stride].copy())  # a view would keep the whole band
            total += pixels.sum(axis=0, dtype=np.float64)
            count += len(pixels)
            extremes.append(pixels[[int(pixels.min(axis=1).argmin()), int(pixels.max(axis=1).argmax())]])
        if not count:
            raise InputError("The mask leaves no pixel known; white means known, --invert-mask turns a mask around.")
        sample = np.concatenate(drawn + extremes)[:, None, :]
        return cls(replace(image.like, pixels=sample, alpha=None, known=None), total / count)


def value_map(
    task: Task, survey: Survey, value_range: tuple[float, float] | None, options: Mapping[str, Any]
) -> ValueMap:
    """The whole image's map: its ends are exact, its median (which a black level is checked against) is the sample's."""
    return task.value_map(survey.sample, None, value_range, options)


def with_coding(image: LargeImage) -> LargeImage:
    """The image with the JPEG coding that its middle shows, which all its tiles are given; with one without steps where it shows none."""
    height, width, channels = image.like.pixels.shape
    rows, columns = (_middle(side) for side in (height, width))
    coding = None
    if image.like.dtype == np.uint8 and not image.like.in_data_units and channels in (1, 3):
        window, told = image.window(rows, columns), image.like.metadata.jpeg
        coding = coding_of(ValueMap(0.0, 255.0).to_unit(window.pixels), window.metadata.jpeg)
        if coding is not None:  # blocks of a picture without a file begin where it begins, and in the window
            coding = replace(coding, origin=(0, 0) if told is None else told.origin)
    coding = coding or JpegCoding((None,) * channels, ((1, 1),) * channels, certain=True)
    return replace(image, like=replace(image.like, metadata=replace(image.like.metadata, jpeg=coding)))


def _middle(side: int) -> slice:
    first = max(side - _WINDOW, 0) // 2 // _UNIT * _UNIT
    return slice(first, min(first + _WINDOW, side))


def known_pixels(
    task: Task, image: LargeImage, mask: RawPixels | None, options: Mapping[str, Any], seed: int, folder: Path
) -> tuple[RawPixels | None, str]:
    """One byte a pixel, 1 where it is known, in `folder`/known.raw (None: everywhere), and where that knowledge comes from.

    As the tasks decide it for an image in memory: what the file misses, the mask, a random one, and for inpainting transparency
    where nothing else is said. A random mask is drawn at once, five bytes a pixel.
    """
    height, width = image.like.height, image.like.width
    fills = task.name == "inpaint"
    random = None
    sources = ["missing values"] * (image.known is not None) + ["mask"] * (mask is not None)
    if options.get("random_missing") is not None:
        random = random_mask((height, width), options["random_missing"], seed)
        sources.append("random")
    by_alpha = fills and not sources and image.like.alpha is not None
    if by_alpha:
        sources.append("alpha")
    if not sources:
        if fills:
            raise InputError(NOTHING_MISSING)
        return None, ""
    known = RawPixels.create(folder / "known.raw", height, width, 1, np.dtype(np.uint8))
    for rows, band in image.bands():
        there = np.ones((rows.stop - rows.start, width), bool)
        if band.known is not None:
            there &= band.known
        if mask is not None:
            there &= mask.read(rows)[:, :, 0].astype(bool)
        if random is not None:
            there &= random[rows]
        if by_alpha:
            there &= band.alpha.astype(np.float32) / np.float32(opaque(band.dtype)) >= 0.5
        known.write(rows, slice(None), there[:, :, None])
    return known, "+".join(sources)


def parts(image: LargeImage, known: RawPixels | None) -> Iterator[tuple[np.ndarray, np.ndarray | None, slice]]:
    """The image as `Task.recipe_of_whole` takes it."""
    for rows in image.stored.bands_of_rows():
        first, last = max(0, rows.start - _BESIDE), min(image.like.height, rows.stop + _BESIDE)
        band = image.window(slice(first, last))
        there = None if known is None else known.read(slice(first, last))[:, :, 0].astype(bool)
        yield band.pixels, there, slice(rows.start - first, rows.stop - first)


def known_in_tiles(grid: TileGrid, known: RawPixels) -> list[int]:
    """How many pixels of each tile are known."""
    return [int(np.count_nonzero(known.read(tile.rows, tile.columns))) for tile in grid]
