"""Write a finished generator as one ONNX file that paints its image in any runtime, and verify it by painting.

What the file says of itself: `onnx_format`.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dipengine._version import __version__
from dipengine.errors import DependencyError, InputError
from dipengine.export.consolidate import ENOUGH, Consolidated, consolidate
from dipengine.export.frozen import fold
from dipengine.export.generator_file import FittedGenerator
from dipengine.export.onnx_format import FORMAT, KEY
from dipengine.fitting import metrics
from dipengine.fitting.progress import ProgressCallback
from dipengine.images import ValueMap
from dipengine.images.atomic import atomic_path, check_target
from dipengine.images.namespaces import on_host
from dipengine.noise.anscombe import Anscombe

PRECISIONS = ("fp32", "fp16", "int8")
CODES = ("stored", "seed")
WARN_BELOW = 40.0  # dB


@dataclass(frozen=True)
class Export:
    """What was written."""

    path: str
    bytes: int
    precision: str
    psnr: float  # dB, painted by ONNX Runtime from the file, against the delivered image; infinite where they are equal
    consolidation_iterations: int

    @property
    def warning(self) -> str:
        """A sentence where the file paints something else than what was delivered; empty otherwise."""
        if self.psnr >= WARN_BELOW:
            return ""
        remedy = "fp32" if self.precision != "fp32" else "a larger network (--channels) or more levels"
        return f"{self.path} paints the delivered image with {self.psnr:.1f} dB only; export with {remedy} for more."


def export(
    generator: FittedGenerator, path: str | os.PathLike, *, precision: str = "fp32", z: str = "stored", enough: float = ENOUGH,
    threads: int | None = None, progress: ProgressCallback | None = None,
) -> Export:
    """Consolidate, freeze, fold, write (beside and renamed), verify.

    precision: "fp32"; "fp16" and "int8" by ONNX Runtime's own tools. z: "stored", or "seed" to leave it out. enough: dB at
    which consolidation ends. progress: see `consolidate`. Raises InputError for a bad choice, DependencyError without onnx or
    onnxruntime, DeviceError for a network that cannot be exported, OutputError when the file cannot be written.
    """
    _check_choices(generator, precision, z)
    if not math.isfinite(enough):
        raise InputError(f"Consolidation cannot end at {enough} dB; give a finite number.")
    require_onnx()
    check_target(path)
    generator = replace(generator, delivered=on_host(generator.delivered))
    consolidated = consolidate(generator, enough=enough, threads=threads, progress=progress)
    return write(generator, consolidated, path, precision=precision, z=z, threads=threads)


def write(
    generator: FittedGenerator, consolidated: Consolidated, path: str | os.PathLike, *, precision: str = "fp32",
    z: str = "stored", threads: int | None = None,
) -> Export:
    """The second half of `export`: one consolidation serves files of several precisions."""
    _check_choices(generator, precision, z)
    data, found = verified(generator, consolidated, precision, z, threads)
    with atomic_path(path) as beside, open(beside, "wb") as file:
        file.write(data)
    return Export(os.fspath(path), len(data), precision, found, consolidated.iterations)


def _check_choices(generator: FittedGenerator, precision: str, z: str) -> None:
    if precision not in PRECISIONS:
        raise InputError(f"There is no precision {precision!r} for ONNX files; choose {', '.join(PRECISIONS)}.")
    if z not in CODES:
        raise InputError(f"z is {z!r}; choose stored or seed.")
    if z == "seed" and generator.code.kind == "image":
        raise InputError("The z of this generator is an image, which no seed can draw again; store it.")


def require_onnx() -> None:
    """Raises DependencyError where onnx or onnxruntime is missing."""
    for name in ("onnx", "onnxruntime"):
        try:
            __import__(name)
        except ImportError as error:
            raise DependencyError(f'Exporting needs {name}; install it with: pip install "dipengine[render]"') from error


def stored_code(generator: FittedGenerator) -> tuple[np.ndarray, float]:
    """z as it is stored, [depth, H, W], and the factor that makes it z: bytes of noise, 8 or 16 bits of an image that has no
    more, else float32."""
    code = generator.code
    if code.kind == "noise":
        return np.ascontiguousarray(code.noise_bytes(generator.canvas).transpose(2, 0, 1)), code.scale / 255
    values = code.make(generator.canvas).transpose(2, 0, 1)
    if code.kind == "image":
        for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
            whole = np.rint(values.astype(np.float64) * top).astype(dtype)
            if np.abs(whole.astype(np.float32) * np.float32(1 / top) - values).max() < 1.2e-7:  # a rounding
                return np.ascontiguousarray(whole), 1 / top
    return np.ascontiguousarray(values, np.float32), 1.0


def verified(
    generator: FittedGenerator, consolidated: Consolidated, precision: str, z: str, threads: int | None
) -> tuple[bytes, float]:
    """The file's bytes, and the PSNR of what ONNX Runtime paints from them against the delivered image."""
    from onnx import helper

    from dipengine.export.onnx_graph import generator_model
    from dipengine.export.precision import converted
    from dipengine.rendering.renderer import Renderer

    folded = fold(generator.architecture, consolidated.parameters, consolidated.statistics)
    (top, left), (height, width) = generator.origin, generator.crop
    code, scale = stored_code(generator)
    model = generator_model(generator.architecture, folded, code=code, code_scale=scale, store_code=z == "stored",
                            window=(top, left, top + height, left + width), producer_version=__version__)
    model = converted(model, precision, code[None])
    about = _about(generator, precision, z, consolidated)
    helper.set_model_props(model, {KEY: json.dumps(about, allow_nan=False)})
    painted = Renderer(model.SerializeToString(), provider="cpu", threads=threads).render()
    found = metrics.psnr(painted, generator.delivered, 1.0)
    about["psnr"] = found if math.isfinite(found) else None
    helper.set_model_props(model, {KEY: json.dumps(about, allow_nan=False)})
    return model.SerializeToString(), found


def value_record(values: ValueMap) -> dict[str, Any]:
    """The map with all that a host needs to take it back: the table of an Anscombe curve's inverse too."""
    found = values.to_dict()
    if isinstance(values.curve, Anscombe):
        found["inverse"] = values.curve.inverse_table.to_dict()
    return found


def _about(generator: FittedGenerator, precision: str, z: str, consolidated: Consolidated) -> dict[str, Any]:
    height, width = generator.crop
    return {
        "format": FORMAT,
        "version": __version__,
        "task": generator.task,
        "source_sha256": generator.source_sha256,
        "width": width,
        "height": height,
        "channels": generator.architecture.output_channels,
        "dtype": generator.dtype,
        "values": value_record(generator.values),
        "canvas": list(generator.canvas),
        "origin": list(generator.origin),
        "generator": generator.architecture.to_dict(),
        "precision": precision,
        "z": z,
        "code": generator.code.to_dict(),
        "psnr": None,
        "consolidation_iterations": consolidated.iterations,
    }
