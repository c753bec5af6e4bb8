"""Painting the whole image again and again on a GPU: a graph of fixed shapes, buffers that stay on the device, CUDA-graph replay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from dipengine.rendering.model import GeneratorModel, fixed_graph


def fixed(model: GeneratorModel) -> bytes:
    """The model for the whole image alone (`model.fixed_graph`): nothing of it is computed on the host, so that a GPU can replay it."""
    return fixed_graph(onnx.load_model_from_string(model.data), model.about, model.architecture).SerializeToString()


class BoundPainting:
    """A session over `fixed`, with z and the image bound to buffers on a device.

    ort: the runtime. device: "cuda" or "cpu", as the runtime names memory. arrays: the module of arrays there (CuPy, NumPy).
    """

    def __init__(self, ort: Any, session: Any, model: GeneratorModel, device: str, number: int = 0) -> None:
        self._session = session
        shape = [1, model.about["channels"], *model.size]
        self._z = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(model.z[None]), device, number)
        self._image = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device, number)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("z", self._z)
        self._binding.bind_ortvalue_output("image", self._image)

    def host(self) -> np.ndarray:
        """The image, float32 [h, w, C] in this process's memory."""
        self._session.run_with_iobinding(self._binding)
        return np.ascontiguousarray(self._image.numpy()[0].transpose(1, 2, 0))

    def there(self, arrays: Any) -> Any:
        """The image, float32 [h, w, C], an array of its own on the device; arrays: the module that makes it (CuPy, NumPy)."""
        self._session.run_with_iobinding(self._binding)
        return arrays.array(arrays.from_dlpack(self._image)[0].transpose(1, 2, 0), order="C")  # the next painting overwrites ours
