"""One way to write array code for NumPy, CuPy and whatever else keeps to the array API standard: the namespace of the array at hand,
and the few things that NumPy before 2.1 and CuPy before 14 name differently.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def namespace(array: Any) -> Any:
    """The module whose functions work on `array`: the array API's answer, else the package of its type."""
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    return sys.modules[type(array).__module__.partition(".")[0]]


def cast(array: Any, dtype: Any) -> Any:
    """A copy of `array` in a dtype of its namespace."""
    return array.astype(dtype) if hasattr(array, "astype") else namespace(array).astype(array, dtype)


def dtype_in(xp: Any, dtype: Any) -> Any:
    """The namespace's own dtype for one of NumPy's, or for its name; its own ones stay."""
    if isinstance(dtype, (str, type, np.dtype)):
        return xp.dtype(dtype) if hasattr(xp, "dtype") else getattr(xp, np.dtype(dtype).name)
    return dtype


def integers(xp: Any, dtype: Any) -> bool:
    """Whether a dtype of the namespace holds integers."""
    return xp.isdtype(dtype, "integral") if hasattr(xp, "isdtype") else dtype.kind in "iu"
