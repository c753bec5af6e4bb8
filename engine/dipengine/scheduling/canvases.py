"""Which jobs can share a plan, told from the headers of their images before anything is decoded."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from dipengine.errors import DipEngineError
from dipengine.images import Image, read_header
from dipengine.scheduling.jobs import Request
from dipengine.tasks.option_files import read_kernels
from dipengine.tiling.sizes import Fits


class Canvases:
    """Remembers what it has found out about each request."""

    def __init__(self) -> None:
        self._fits: dict[tuple[Any, ...], Fits | None] = {}

    def of(self, request: Request, image: str | Image) -> Hashable:
        """Equal for jobs that can share a plan, as far as anybody can tell; None for what cannot be told.

        A hint for the scheduler and no more: the worker that has read the image decides.
        """
        try:
            like = image if isinstance(image, Image) else read_header(image, max_pixels=request.max_pixels)
            kind = (request.digest, like.channels, str(like.dtype), like.in_data_units)
            if kind not in self._fits:
                self._fits[kind] = None
                self._fits[kind] = self._fits_of(request, like)
        except DipEngineError:
            return None  # whoever reads it says why
        fits = self._fits[kind]
        return None if fits is None else (*kind, fits.canvas(like.height, like.width))

    def _fits_of(self, request: Request, like: Image) -> Fits:
        options = read_kernels(request.described, request.options, max_pixels=request.max_pixels)
        guide = options.get("guide")
        if guide is not None:
            options["guide"] = read_header(guide, max_pixels=request.max_pixels)
        return Fits.of(like, request.task, options, request.settings)
