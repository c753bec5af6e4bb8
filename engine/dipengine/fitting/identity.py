"""What has to be the same for a saved fit to go on with the same bits: the engine's build, where it runs, what it fits."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dipengine._version import __version__
from dipengine.errors import InputError
from dipengine.fitting.device import Placement
from dipengine.generators.code import Code
from dipengine.images.namespaces import on_host
from dipengine.kernels import backend
from dipengine.tasks.base import Problem, Recipe


@functools.cache
def engine_build() -> str:
    """Version of the package and a hash of the compiled core, or of PyTorch's version where there is no core."""
    if backend.native is None:
        return __version__
    return f"{__version__}+{hashlib.sha256(Path(backend.native.__file__).read_bytes()).hexdigest()[:12]}"


def where(placement: Placement, path: str) -> dict[str, str]:
    """Build, instruction set, precision, kind of device, kernels and path ("plan", "autograd") of a fit, in words."""
    found = {
        "build": engine_build(),
        "instruction_set": backend.instruction_set(),
        "device": placement.device.partition(":")[0],
        "precision": placement.precision,
        "kernels": placement.kernels,
        "path": path,
    }
    if path == "autograd":
        import torch

        found["torch"] = torch.__version__
    return found


def settings_digest(problem: Problem, recipe: Recipe, code: Code, stop: str, seed: int, init: str | None) -> str:
    """SHA-256 over everything that decides a fit's course besides `where`: data, operator, noise, network, z, recipe, seed.

    init: the digest of the weights that a warm start began with.
    An operator of the user's own counts by its name alone.
    """
    said = {
        "task": problem.task,
        "output_shape": problem.output_shape,
        "origin": problem.origin,
        "shape": problem.shape,
        "sigma": problem.sigma,
        "operator": problem.operator.to_dict() if problem.operator is not None else None,
        "data_term": problem.data_term.to_dict() if problem.data_term is not None else None,
        "recipe": asdict(recipe),
        "code": code.to_dict(),
        "stop": stop,
        "seed": seed,
        "init": init,
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    target, known, guide = (None if array is None else on_host(array) for array in (problem.target, problem.known, problem.guide))
    if known is not None:
        target = np.where(known[:, :, None], target, np.float32(0))
    for array in (target, known, guide):
        if array is not None:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


_CHANGED = {  # what to say where a saved fit and this process differ: what it was, what this one is
    "build": "The saved fit is of engine {0} and this one is {1}; continue it with the engine that saved it, or start anew.",
    "instruction_set": "The saved fit ran on the instruction set {0} and this process uses {1}; set DIPENGINE_ISA={0} where the "
    "CPU has it, or start anew.",
    "device": "The saved fit ran on {0} and this one would on {1}; choose that device, or start anew.",
    "precision": "The saved fit ran in {0} and this one would in {1}; use --precision {0}, or start anew.",
    "kernels": "The saved fit ran on {0} kernels and this one would on {1} kernels; use --kernels {0}, or start anew.",
    "path": "The saved fit ran on the {0} path and this one would on the {1} path; start anew.",
    "torch": "The saved fit ran on PyTorch {0} and this one would on {1}; continue it with that version, or start anew.",
}


def check_same_place(saved: Mapping[str, Any], here: Mapping[str, str]) -> None:
    """Raises InputError in one sentence for the first difference between `where` of a saved fit and of this one."""
    for name, sentence in _CHANGED.items():
        if saved.get(name) != here.get(name):
            raise InputError(sentence.format(saved.get(name), here.get(name)))
