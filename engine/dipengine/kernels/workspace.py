"""Memory that native ops work in: in CPU memory one growing block a thread, so that two fits in two threads never share one;
on a CUDA device what PyTorch gives for the length of a call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from dipengine.kernels import backend
from dipengine.kernels.backend import native

if TYPE_CHECKING:
    from torch import Tensor

_local = threading.local()


def get():
    """This thread's `Workspace` in CPU memory; only where the native core is built."""
    if not hasattr(_local, "workspace"):
        _local.workspace = native.Workspace()
    return _local.workspace


def beside(tensor: Tensor):
    """What a native op on `tensor` takes as its workspace: `get()`, or `allocator(tensor)` on a device."""
    return get() if backend.device_type(tensor) == "cpu" else allocator(tensor)


def allocator(tensor: Tensor) -> Callable[[int], Tensor]:
    """A function from bytes to uint8 memory on the tensor's device, in the order of PyTorch's current stream there."""
    import torch

    return lambda bytes_: torch.empty(bytes_, dtype=torch.uint8, device=tensor.device)
