"""dipengine: deep image prior, fast enough to be a tool.

Restore an image with no training data, by fitting a randomly initialised convolutional generator to that one image:

    result = dipengine.denoise(noisy)          # HxW or HxWxC, NumPy, torch or DLPack
    result.image, result.record, result.generator.save("generator.safetensors")
    result.export("generator.onnx")            # painted again by dipengine.Renderer("generator.onnx")

Importing this package needs neither PyTorch nor an image reader; each is loaded when it is first used.
"""

from dipengine._version import __version__
from dipengine.errors import (
    DependencyError, DeviceError, DipEngineError, FitError, ImageError, InputError, OutputError,
)

_LAZY = {
    "Result": "dipengine.api",
    "restore": "dipengine.api",
    "denoise": "dipengine.api",
    "dejpeg": "dipengine.api",
    "super_resolve": "dipengine.api",
    "inpaint": "dipengine.api",
    "flash": "dipengine.api",
    "deblur": "dipengine.api",
    "FittedGenerator": "dipengine.export.generator_file",
    "Export": "dipengine.export.exporter",
    "Renderer": "dipengine.rendering.renderer",
    "Engine": "dipengine.scheduling.engine",
}

__all__ = [
    "DependencyError", "DeviceError", "DipEngineError", "FitError", "ImageError", "InputError", "OutputError",
    "__version__", *_LAZY,
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'dipengine' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
