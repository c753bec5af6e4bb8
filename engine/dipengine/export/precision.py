"""float16 and int8 versions of a generator's ONNX model, by ONNX Runtime's own tools."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx

from dipengine.errors import DependencyError


def converted(model: onnx.ModelProto, precision: str, z: np.ndarray) -> onnx.ModelProto:
    """The model in "fp32" (as it is), "fp16" (weights and activations; z and image stay) or "int8" (convolutions, per channel,
    activations calibrated on z, [1, depth, H, W] as stored)."""
    if precision == "fp16":
        return _half(model)
    if precision == "int8":
        return _quantised(model, z)
    return model


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise DependencyError("This onnxruntime lacks its float16 converter; install another version.") from error
    found = convert_float_to_float16(model, keep_io_types=True)
    _sort(found.graph)  # the converter puts the cast of a float z last, behind those who need it
    return found


def _sort(graph: onnx.GraphProto) -> None:
    """Nodes in an order in which each follows those that it needs, and otherwise as they were."""
    made = {name for node in graph.node for name in node.output}
    there: set[str] = set()
    left, ordered = list(graph.node), []
    while left:
        waiting = []
        for node in left:
            if all(name in there or name not in made for name in node.input):
                ordered.append(node)
                there.update(node.output)
            else:
                waiting.append(node)
        left = waiting
    del graph.node[:]
    graph.node.extend(ordered)


def _quantised(model: onnx.ModelProto, z: np.ndarray) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Once(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [feed]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    # The quantiser takes a float z that has a default for weights, and leaves it no input: the defaults stay out of its sight.
    inputs = {value.name for value in model.graph.input}
    defaults = [tensor for tensor in model.graph.initializer if tensor.name in inputs]
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in [tensor for tensor in bare.graph.initializer if tensor.name in inputs]:
        bare.graph.initializer.remove(tensor)
    feed = {"z": z} | {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in defaults if tensor.name != "z"}

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "quantised.onnx"
        onnx.save(bare, source)
        # Weights in seven bits: on CPUs without VNNI sums of two products of eight are cut off at 16 bits, which cost up to 0.4 dB;
        # the eighth bit is worth less than activations' own rounding.
        with _hushed():
            quantize_static(source, target, Once(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True,
                            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["Conv"])
        found = onnx.load(target)
    found.graph.initializer.extend(defaults)
    return found


@contextmanager
def _hushed() -> Iterator[None]:
    """Within: the quantiser's advice to pre-process, and the runtime's warnings of inputs that are inputs on purpose, are not shown."""
    import onnxruntime

    root = logging.getLogger()
    quiet = lambda record: "pre-processing before quantization" not in record.getMessage()
    handlers = list(root.handlers)
    root.addFilter(quiet)
    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)
        root.removeFilter(quiet)
        for handler in set(root.handlers) - set(handlers):  # the advice would have made one
            root.removeHandler(handler)
