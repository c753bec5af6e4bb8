"""The generator file: a finished fit as safetensors (weights, z, delivered image) with JSON metadata. Never pickle.

Layout, `format` 1:

| tensor | shape, dtype | what |
|---|---|---|
| `parameters/<name>` | as `Hourglass.parameters()` says, float32 | weights |
| `delivered` | [H, W, C], float32 in [0, 1], or a little beyond (floats, enlarged) | the image that the user was given (an output average, as a rule) |
| `code` | [H', W', depth], float32 | z on the canvas; only where it cannot be drawn again (an image) |

Metadata key `dipengine` holds one JSON object: format, version, task, generator (architecture), code (kind, depth, seed,
scale), canvas [H', W'], crop [H, W] and origin [top, left] (the delivered window of the canvas; origin 0, 0 where it is not
named), values (low, high: data = low + (high - low) * output; with a curve see images.values), dtype of the data,
source_sha256, iteration, seed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dipengine._version import __version__
from dipengine.errors import InputError
from dipengine.generators.architecture import Hourglass
from dipengine.generators.code import Code
from dipengine.images import ValueMap
from dipengine.images.atomic import write_bytes
from dipengine.images.namespaces import on_host
from dipengine.noise.anscombe import Anscombe

FORMAT = 1
_PREFIX = "parameters/"


@dataclass(frozen=True)
class FittedGenerator:
    """A generator with everything needed to paint its image again."""

    task: str
    architecture: Hourglass
    parameters: dict[str, np.ndarray] = field(repr=False)  # float32
    code: Code
    canvas: tuple[int, int]
    crop: tuple[int, int]
    values: ValueMap
    dtype: str  # of the image's data, NumPy's name
    # float32 [H, W, C] in the generator's units: NumPy's, or where the fit's input stayed on its device an array there
    delivered: Any = field(repr=False)
    source_sha256: str | None
    iteration: int
    seed: int
    origin: tuple[int, int] = (0, 0)

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file, beside and renamed. Raises OutputError when it cannot be written."""
        from safetensors.numpy import save

        tensors = {_PREFIX + name: np.ascontiguousarray(value) for name, value in self.parameters.items()}
        tensors["delivered"] = np.ascontiguousarray(on_host(self.delivered), dtype=np.float32)
        if self.code.kind == "image":
            tensors["code"] = np.ascontiguousarray(self.code.make(self.canvas))
        write_bytes(path, save(tensors, metadata={"dipengine": json.dumps(self._description(), allow_nan=False)}))

    def _description(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": __version__,
            "task": self.task,
            "generator": self.architecture.to_dict(),
            "code": self.code.to_dict(),
            "canvas": list(self.canvas),
            "crop": list(self.crop),
            "origin": list(self.origin),
            "values": self.values.to_dict(),
            "dtype": self.dtype,
            "source_sha256": self.source_sha256,
            "iteration": self.iteration,
            "seed": self.seed,
        }

    @staticmethod
    def load(path: str | os.PathLike) -> "FittedGenerator":
        """Read a generator file. Raises InputError for a missing, foreign, damaged or newer file."""
        from safetensors import SafetensorError, safe_open

        if not os.path.isfile(path):
            raise InputError(f"There is no generator file {os.fspath(path)!r}; check the path.")
        try:
            with safe_open(path, framework="numpy") as file:
                text = (file.metadata() or {}).get("dipengine")
                if text is None:
                    raise InputError(f"{os.fspath(path)!r} is no generator of dipengine; give a file that --generator wrote.")
                about = json.loads(text)
                if about.get("format") != FORMAT:
                    raise InputError(
                        f"{os.fspath(path)!r} has format {about.get('format')} and this version reads {FORMAT}; "
                        f"use the version of dipengine that wrote it ({about.get('version')})."
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, json.JSONDecodeError, OSError) as error:
            raise InputError(f"{os.fspath(path)!r} cannot be read as a generator file ({error}).") from error
        try:
            return _from_parts(about, tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{os.fspath(path)!r} is damaged as a generator file ({error}).") from error


def _values(record: dict[str, Any]) -> ValueMap:
    curve = record.get("curve")
    return ValueMap.from_dict(record, Anscombe.from_dict(curve) if curve else None)


def _from_parts(about: dict[str, Any], tensors: dict[str, np.ndarray]) -> FittedGenerator:
    architecture = Hourglass.from_dict(about["generator"])
    parameters = {}
    for spec in architecture.parameters():
        value = tensors[_PREFIX + spec.name]
        if value.shape != spec.shape or value.dtype != np.float32:
            raise ValueError(f"{spec.name} is {value.dtype} {value.shape}, expected float32 {spec.shape}")
        parameters[spec.name] = value
    return FittedGenerator(
        task=about["task"],
        architecture=architecture,
        parameters=parameters,
        code=Code.from_dict(about["code"], image=tensors.get("code")),
        canvas=tuple(about["canvas"]),
        crop=tuple(about["crop"]),
        origin=tuple(about.get("origin", (0, 0))),
        values=_values(about["values"]),
        dtype=about["dtype"],
        delivered=tensors["delivered"],
        source_sha256=about["source_sha256"],
        iteration=about["iteration"],
        seed=about["seed"],
    )
