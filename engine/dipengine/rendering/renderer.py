"""Paint finished generators from ONNX files: whole, by regions, by tiles; without PyTorch and without fitting."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from dipengine import environment
from dipengine.errors import DependencyError, DeviceError, InputError
from dipengine.rendering.regions import window

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


class Renderer:
    """One generator, ready to paint.

    model: a path, or the file's bytes. provider: "auto" (CUDA where ONNX Runtime has it, else the CPU), "cpu", "cuda" or
    "tensorrt". strict: fail where the runtime falls back to another provider instead of saying so in `notice`. threads: of the
    CPU; None: all cores. Raises InputError for a file that is no generator's, DependencyError without ONNX Runtime, DeviceError
    for a provider that is not here.
    """

    def __init__(
        self, model: str | os.PathLike | bytes, *, provider: str = "auto", strict: bool = False, threads: int | None = None
    ) -> None:
        ort = _runtime()
        from dipengine.rendering.model import read_model  # needs onnx

        self.model = read_model(model)
        wanted = _wanted(ort, provider)
        options = ort.SessionOptions()
        options.log_severity_level = 3  # its warnings speak of z and crop, which are inputs on purpose
        options.intra_op_num_threads = threads or environment.default_threads()
        try:
            self._session = ort.InferenceSession(self.model.data, options, providers=wanted)
        except MemoryError:
            raise
        except Exception as error:  # the runtime's own classes, which differ between builds
            raise InputError(f"{self.model.name} cannot be run by ONNX Runtime ({str(error).splitlines()[0]}).") from error
        self.provider = _short(self._session.get_providers()[0])
        self.notice = ""
        if self.provider != _short(wanted[0]):
            self.notice = f"ONNX Runtime could not use {_short(wanted[0])} and paints on {self.provider}; see its own messages."
            if strict:
                raise DeviceError(self.notice)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image, pixels."""
        return self.model.size

    def render(self, region: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The image, or its region (x, y, width, height): float32 [h, w, C] in [0, 1].

        A region is painted from the part of z that it depends on; its pixels are those of the whole (to 1e-5: sums may be
        taken in another order). Raises InputError for a region outside the image.
        """
        from dipengine.rendering.model import check_memory, painting_bytes

        x, y, width, height = self._checked(region)
        model = self.model
        top, left = y + model.origin[0], x + model.origin[1]
        rows = window(model.architecture, top, top + height - 1, model.z.shape[1])
        columns = window(model.architecture, left, left + width - 1, model.z.shape[2])
        if region is None:
            rows, columns = (0, model.z.shape[1]), (0, model.z.shape[2])
        needed = painting_bytes(model.architecture, rows[1] - rows[0], columns[1] - columns[0])
        check_memory(f"To paint {width}x{height} pixels at once needs", needed, "paint by tiles (--tile), or a smaller region")
        z = np.ascontiguousarray(model.z[None, :, rows[0] : rows[1], columns[0] : columns[1]])
        crop = np.array([top - rows[0], left - columns[0], top - rows[0] + height, left - columns[0] + width], np.int64)
        image = self._session.run(["image"], {"z": z, "crop": crop})[0]
        return np.ascontiguousarray(image[0].transpose(1, 2, 0))

    def tiles(self, side: int) -> Iterator[tuple[tuple[int, int, int, int], np.ndarray]]:
        """Regions of at most side x side pixels that cover the image, row by row, each with its pixels: memory for one at a time.

        Each costs its halo on top (`regions.halo`). Raises InputError for a side below 1.
        """
        if side < 1:
            raise InputError(f"The tile is {side} pixels wide; give at least 1.")
        height, width = self.size
        for y in range(0, height, side):
            for x in range(0, width, side):
                region = (x, y, min(side, width - x), min(side, height - y))
                yield region, self.render(region)

    def image(self, region: tuple[int, int, int, int] | None = None, *, tile: int | None = None) -> np.ndarray:
        """The image or a region of it in the restored image's own dtype and units, [h, w, C]; tile: paint by tiles of that side."""
        values, dtype = self.model.values, np.dtype(self.model.about["dtype"])
        if tile is None:
            return values.from_unit(self.render(region), dtype)
        if region is not None:
            raise InputError("A region is painted by itself; give a region or a tile, not both.")
        whole = np.empty((*self.size, self.model.about["channels"]), dtype)
        for (x, y, width, height), pixels in self.tiles(tile):
            whole[y : y + height, x : x + width] = values.from_unit(pixels, dtype)
        return whole

    def _checked(self, region: tuple[int, int, int, int] | None) -> tuple[int, int, int, int]:
        height, width = self.size
        if region is None:
            return 0, 0, width, height
        x, y, w, h = region
        if not (0 <= x and 0 <= y and 1 <= w <= width - x and 1 <= h <= height - y):
            raise InputError(f"The region {x},{y},{w},{h} does not lie in the image of {width}x{height} pixels (x,y,width,height).")
        return x, y, w, h


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError('Rendering needs ONNX Runtime; install it with: pip install "dipengine[render]"') from error
    return onnxruntime


def _wanted(ort: Any, provider: str) -> list[str]:
    if provider != "auto" and provider not in PROVIDERS:
        raise InputError(f"There is no provider {provider!r}; choose auto, {', '.join(PROVIDERS)}.")
    there = ort.get_available_providers()
    if provider == "auto":
        provider = "cuda" if PROVIDERS["cuda"] in there else "cpu"
    if PROVIDERS[provider] not in there:
        raise DeviceError(f"This ONNX Runtime has no provider {provider} (it has: {', '.join(map(_short, there))}); install "
                          f'"dipengine[gpu]" or use --provider cpu.')
    behind = {"cpu": [], "cuda": ["cpu"], "tensorrt": ["cuda", "cpu"]}[provider]
    return [PROVIDERS[name] for name in (provider, *behind)]


def _short(provider: str) -> str:
    return next((name for name, full in PROVIDERS.items() if full == provider), provider)
