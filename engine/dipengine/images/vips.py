"""libvips through pyvips, loaded when the first file is read or written: `import dipengine` stays quick."""

from types import ModuleType

import numpy as np

from dipengine.errors import DependencyError

_FORMAT_OF_DTYPE = {
    "uint8": "uchar",
    "int8": "char",
    "uint16": "ushort",
    "int16": "short",
    "uint32": "uint",
    "int32": "int",
    "float32": "float",
    "float64": "double",
}


def load_pyvips() -> ModuleType:
    """The pyvips module; DependencyError where it or libvips itself is missing."""
    try:
        import pyvips
    except (ImportError, OSError) as error:  # OSError: pyvips is there, the shared library is not
        raise DependencyError('Reading and writing images needs libvips; install it with pip install "pyvips[binary]".'
                              ) from error
    return pyvips


def vips_format(dtype: np.dtype) -> str:
    """libvips's name of a NumPy dtype (KeyError where it has none)."""
    return _FORMAT_OF_DTYPE[np.dtype(dtype).name]


def dtype_of(picture) -> np.dtype:
    """The NumPy dtype of a pyvips image's samples."""
    return np.dtype(next(name for name, said in _FORMAT_OF_DTYPE.items() if said == str(picture.format)))


def reason(error: Exception) -> str:
    """The last line that libvips said, shortened, to stand inside a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:160].rstrip(".")
