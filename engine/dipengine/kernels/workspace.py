"""Memory that native ops work in: one growing block a thread, so that two fits in two threads never share one."""

from __future__ import annotations

import threading

from dipengine.kernels.backend import native

_local = threading.local()


def get():
    """This thread's `Workspace`; only where the native core is built."""
    if not hasattr(_local, "workspace"):
        _local.workspace = native.Workspace()
    return _local.workspace
