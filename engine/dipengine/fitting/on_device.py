"""Images of files, brought to the GPU that their fit runs on.

Value map, masks, data, averages and metrics are worked out where the image lies (`images.namespaces`), so that the host has no more
to do with it until it is encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from dipengine.fitting.device import memory_errors
from dipengine.images import Image
from dipengine.images.namespaces import moved
from dipengine.tasks import task_named


def library(device: str) -> str:
    """Whose arrays are taken there: "torch", whose operations come compiled, else "cupy", else "numpy", which stay on the host."""
    if device == "cpu":
        return "numpy"
    if find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return "torch"
    return "cupy" if find_spec("cupy") is not None else "numpy"


def bring(image: Image, device: str) -> Image:
    """The image with pixels, alpha and known on "cuda:N"; itself for "cpu", and where no library of arrays is there.

    Raises OutOfMemory.
    """
    put = way_to(device)
    if put is None:
        return image
    with memory_errors():
        planes = {name: None if (plane := getattr(image, name)) is None else put(plane) for name in ("pixels", "alpha", "known")}
    return replace(image, **planes)


def bring_masks(task: str, options: Mapping[str, Any], pixels: Any) -> dict[str, Any]:
    """The task's options with its masks beside the image's `pixels`."""
    masks = {option.keyword for option in task_named(task).options if option.kind == "mask"}
    with memory_errors():
        return {name: moved(value, pixels) if name in masks and value is not None else value for name, value in options.items()}


def way_to(device: str) -> Callable[[np.ndarray], Any] | None:
    """What takes an array to "cuda:N"; None where arrays stay on the host."""
    name = library(device)
    if name == "torch":
        import torch

        # A tensor can neither lie on memory that nobody may write to, nor hold bytes in another order.
        return lambda array: torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"])).to(device)
    if name == "cupy":
        import cupy

        def put(array: np.ndarray) -> Any:
            with cupy.cuda.Device(int(device.partition(":")[2] or 0)):
                return cupy.asarray(array)

        return put
    return None
