"""The process-wide pool of threads that native ops run on. Results never depend on its size."""

from __future__ import annotations

import os

from dipengine import environment
from dipengine.errors import InputError
from dipengine.kernels.backend import native

_pool = None


def set_threads(threads: int) -> None:
    """Use `threads` threads, the calling one counted, from the next op on. Raises InputError outside 1 to 1024."""
    global _pool
    if not 1 <= threads <= 1024:
        raise InputError(f"A pool of {threads} threads cannot be made; ask for 1 to 1024.")
    if native is not None and (_pool is None or _pool.threads != threads):
        _pool = native.Pool(threads)


def get():
    """The pool, made on first use with `environment.default_threads()` threads; None where nothing is built."""
    if _pool is None:
        set_threads(environment.default_threads())
    return _pool


def _forget() -> None:
    # A forked child has no threads; it makes its own pool when it needs one.
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
