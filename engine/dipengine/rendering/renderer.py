"""Paint finished generators from ONNX files: whole, by regions, by tiles; without PyTorch and without fitting.

On the CPU one session paints everything. On a GPU the whole image has a session of its own, of fixed shapes, whose z and image stay
on the device and which is replayed as a CUDA graph where the runtime can capture one (`bound`); regions go through a second, free one.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from dipengine import environment
from dipengine.errors import DependencyError, DeviceError, DipEngineError, InputError
from dipengine.rendering import providers
from dipengine.rendering.regions import window


class Renderer:
    """One generator, ready to paint.

    model: a path, or the file's bytes. provider: "auto" (CUDA where ONNX Runtime has it, else the CPU), "cpu", "cuda" or
    "tensorrt". strict: fail where the runtime falls back to another provider instead of saying so in `notice`. threads: of the
    CPU; None: all cores. Raises InputError for a file that is no generator's, DependencyError without ONNX Runtime, DeviceError
    for a provider that is not here, or a fallback under strict.
    """

    def __init__(
        self, model: str | os.PathLike | bytes, *, provider: str = "auto", strict: bool = False, threads: int | None = None
    ) -> None:
        if threads is not None and not 1 <= threads <= 1024:
            raise InputError(f"threads is {threads}; ask for 1 to 1024.")
        self._ort = providers.runtime()
        from dipengine.rendering.model import read_model  # needs onnx

        self._names = providers.chosen(self._ort, provider)
        self.model = read_model(model)
        self._threads = environment.default_threads() if threads is None else threads
        self._bound: Any = None  # the whole image on a GPU
        self._free: Any = None  # any part of it
        self.replays = False  # whether a GPU replays the whole image as one CUDA graph
        wanted = self.provider = self._names[0]
        if wanted == "cpu":
            self._free = self._open(self.model.data, ("cpu",))
        else:
            self._open_on_gpu()
        self.notice = providers.fallback(wanted, self.provider)
        if self.notice and strict:
            raise DeviceError(self.notice)

    def _open_on_gpu(self) -> None:
        """The whole image's session; where the runtime gives another provider, that one's."""
        from dipengine.rendering.bound import BoundPainting, fixed

        whole = fixed(self.model)
        for replay in (True, False):
            opened = self._open(whole, self._names, replay=replay)
            self.provider = providers.got(opened)
            if self.provider == "cpu":
                self._free = self._open(self.model.data, ("cpu",))
                return
            try:
                self._bound = BoundPainting(self._ort, opened, self.model, "cuda")
                self._bound.host()  # captures the graph
                self.replays = replay
                return
            except Exception as error:  # the runtime's own classes
                if not replay:
                    said = _first_line(error)
                    raise DeviceError(f"ONNX Runtime fails to paint on {self.provider} ({said}); use --provider cpu.") from error

    def _open(self, data: bytes, names: tuple[str, ...], *, replay: bool = False) -> Any:
        precision, version = str(self.model.about["precision"]), self._ort.__version__
        wanted = [(name, providers.options(name, data, precision=precision, version=version, replay=replay)) for name in names]
        try:
            return providers.session(self._ort, data, wanted, self._threads)
        except (MemoryError, DipEngineError):
            raise
        except Exception as error:  # the runtime's own classes, which differ between builds
            raise InputError(f"{self.model.name} cannot be run by ONNX Runtime ({_first_line(error)}).") from error

    def _parts(self) -> Any:
        """The session of regions: any size of z. TensorRT would build an engine for each, so CUDA paints them in its place."""
        if self._free is None:
            self._free = self._open(self.model.data, tuple(name for name in self._names if name != "tensorrt"))
        return self._free

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
        if region is None and self._bound is not None:
            return self._bound.host()
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
        image = self._parts().run(["image"], {"z": z, "crop": crop})[0]
        return np.ascontiguousarray(image[0].transpose(1, 2, 0))

    def tensor(self, region: tuple[int, int, int, int] | None = None) -> Any:
        """As `render`, but left where it was painted: a CuPy array on a GPU, a NumPy array on the CPU, both with `__dlpack__` for
        PyTorch, JAX and others. Raises DependencyError on a GPU without CuPy."""
        if self.provider == "cpu":
            return self.render(region)
        try:
            import cupy
        except ImportError as error:
            raise DependencyError('Images on a GPU need CuPy; install it with: pip install "dipengine[gpu]"') from error
        return self._bound.there(cupy) if region is None else cupy.asarray(self.render(region))

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
        try:
            x, y, w, h = (operator.index(number) for number in region)
        except (TypeError, ValueError):
            raise InputError(f"The region is {region!r}; give four whole numbers, (x, y, width, height).") from None
        if not (0 <= x and 0 <= y and 1 <= w <= width - x and 1 <= h <= height - y):
            raise InputError(f"The region {x},{y},{w},{h} does not lie in the image of {width}x{height} pixels (x,y,width,height).")
        return x, y, w, h


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
