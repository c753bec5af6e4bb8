"""A warm start: a fit that begins with the weights of another one, and with its z, without which they mean nothing.

Adam begins anew, and so does everything else: averages, stopping, history. The network and the kind of z must be the same, for
noise the canvas too, over which it was drawn; an image code is the new problem's own. The fit's seed goes on to choose the
perturbations.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dipengine.errors import InputError
from dipengine.export.generator_file import FittedGenerator
from dipengine.fitting import checkpoint
from dipengine.generators.architecture import Hourglass
from dipengine.generators.code import Code


@dataclass(frozen=True, eq=False)
class WarmStart:
    """Weights to begin with, and what they mean."""

    parameters: Mapping[str, np.ndarray]  # float32, by the architecture's names and in its shapes
    architecture: Hourglass
    code: Mapping[str, Any]  # as `Code.to_dict` says
    canvas: tuple[int, int]
    kind: str  # "generator", "checkpoint", or the caller's word ("previous": the frame before)
    iteration: int  # of the fit that the weights come from
    sha256: str  # of the file; of the weights where there is none
    source: str | None = None  # a path, or the caller's name for it

    @staticmethod
    def load(path: str | os.PathLike) -> "WarmStart":
        """From a generator file or a checkpoint. Raises InputError, in one sentence, for a file that is neither."""
        from safetensors import SafetensorError, safe_open

        name = os.fspath(path)
        if not os.path.isfile(path):
            raise InputError(f"There is no file {name!r} to start from; give one that --generator or --checkpoint wrote.")
        try:
            with safe_open(path, framework="numpy") as file:
                keys = (file.metadata() or {}).keys()
        except (SafetensorError, OSError) as error:
            raise InputError(f"{name!r} cannot be read as a generator or checkpoint to start from ({error}).") from error
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if checkpoint.KEY in keys:
            return _of_checkpoint(checkpoint.read_checkpoint(path), sha256)
        if "dipengine" in keys:
            return replace(WarmStart.of_generator(FittedGenerator.load(path), name), sha256=sha256)
        raise InputError(f"{name!r} is neither a generator nor a checkpoint; start from a file that --generator or --checkpoint "
                         f"wrote.")

    @staticmethod
    def of_generator(generator: FittedGenerator, source: str | None = None, kind: str = "generator") -> "WarmStart":
        """From a generator in memory, such as that of the frame before."""
        digest = hashlib.sha256()
        for spec in generator.architecture.parameters():
            digest.update(np.ascontiguousarray(generator.parameters[spec.name]).data)
        return WarmStart(
            generator.parameters, generator.architecture, generator.code.to_dict(), tuple(generator.canvas), kind,
            generator.iteration, digest.hexdigest(), source,
        )

    def code_for(self, architecture: Hourglass, code: Code, canvas: tuple[int, int]) -> Code:
        """The z of a fit with this network and kind of code that starts from here.

        Raises InputError, in one sentence that says both, where its network, kind of z or canvas is another.
        """
        what = f"The {self.kind} to start from" if self.source is None else f"{self.source!r}, to start from,"
        theirs, ours = self.architecture.to_dict(), architecture.to_dict()
        if self.architecture.levels != architecture.levels:
            theirs, ours = ({"levels": network.levels} for network in (self.architecture, architecture))
        differing = [name for name in ours if theirs.get(name) != ours[name]]
        if differing:
            pairs = (", ".join(f"{name} {_shown(said[name])}" for name in differing) for said in (theirs, ours))
            raise InputError(
                f"{what} is of a network with {next(pairs)} and this fit's has {next(pairs)}; ask for the same network, or start "
                f"without it."
            )
        if self.code["kind"] != code.kind:
            raise InputError(f"{what} has the code {self.code['kind']!r} for its z and this fit {code.kind!r}; start without it.")
        if code.kind != "noise":
            return code
        if self.canvas != tuple(canvas):
            theirs, ours = ("x".join(map(str, reversed(sides))) for sides in (self.canvas, canvas))
            raise InputError(
                f"{what} has its z on a canvas of {theirs} pixels and this fit's has {ours}; start from a fit of an image of this "
                f"size."
            )
        return replace(code, seed=self.code["seed"], scale=self.code["scale"])

    def to_dict(self) -> dict[str, Any]:
        """For the record."""
        return {"kind": self.kind, "source": self.source, "sha256": self.sha256, "iteration": self.iteration}


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _of_checkpoint(saved: checkpoint.Checkpoint, sha256: str) -> WarmStart:
    about = saved.about
    try:
        architecture = Hourglass.from_dict(about["generator"])
        parameters = {spec.name: saved.tensors[f"parameters/{spec.name}"] for spec in architecture.parameters()}
        code, canvas = dict(about["code"]), tuple(about["canvas"])
        return WarmStart(parameters, architecture, code, canvas, "checkpoint", int(about["iteration"]), sha256, saved.path)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"The checkpoint {saved.path!r} is damaged ({error}); start from another file.") from error
